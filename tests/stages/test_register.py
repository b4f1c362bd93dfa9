"""The stage `register` on a real MLflow database, and the registered model on its own."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mlflow.pyfunc import PythonModelContext
from PIL import Image

from model.adapters.adapter import VisualAdapter
from model.adapters.realcustom import RealCustomAdapter
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.checksums import DamagedArtifactError, folder_checksums, verify_checksums
from pipelines.config.loading import config_from_dict, load_config
from pipelines.errors import UsageError
from pipelines.fingerprint import Ingredients
from pipelines.store.store import Store
from stages.config import Config
from stages.contract import StageError, StageResult
from stages.inference import loading_options
from stages.register import pyfunc_model
from stages.register.lineage import lineage_of
from stages.register.pyfunc_model import PaintRequest, RealwordModel
from stages.register.stage import compare_versions, requirements, run, score_of
from stages.registered_model import PARTS_HERE, VERIFY_CHECKSUMS
from tests.support.contexts import make_context, on_disk
from tests.support.random_adapter import write_random_adapter
from tests.support.random_backbone import write_random_backbone
from tests.support.registered_model import Registry
from tests.support.toy_pipeline import commit_stage
from tests.test_architecture import imported

NAME = "realword-micro"


def picture(seed: int = 0) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(256, size=(80, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


# What a fresh environment needs


def test_the_requirements_name_every_package_that_the_model_imports() -> None:
    root = Path(pyfunc_model.__file__).parents[2]
    files, found, packages = [Path(pyfunc_model.__file__)], set[Path](), set[str]()
    while files:
        found.add(file := files.pop())
        for name in imported(file):
            if name.startswith("model."):
                files += {root / f"{name.replace('.', '/')}.py"} - found
            else:
                packages.add(name.partition(".")[0])
    required, distributions = {line.partition("==")[0] for line in requirements()}, packages_distributions()
    for package in packages - set(sys.stdlib_module_names):
        assert required & {name.lower() for name in distributions[package]}, package
    assert len(found) > 20


# The choice of the champion


def a_version(number: int, score: float, evaluation: str = "e") -> SimpleNamespace:
    return SimpleNamespace(version=number, tags={"score": repr(score), "evaluation": evaluation})


@pytest.mark.parametrize(
    ("champion", "promote", "moved", "why"),
    [
        (None, False, True, "there was no champion before"),
        (a_version(1, 0.2), False, True, "beats 0.2000 of version 1"),
        (a_version(1, 0.3), False, False, "does not beat 0.3000 of version 1"),  # equal is not better
        (a_version(1, 0.9), False, False, "does not beat"),
        (a_version(1, 0.9), True, True, "register.promote asks for it"),
        (a_version(1, 0.2, "another"), False, False, "scored by another evaluation"),
    ],
)
def test_the_alias_moves_to_a_better_version_only(
    champion: SimpleNamespace | None, promote: bool, moved: bool, why: str
) -> None:
    found = compare_versions(a_version(2, 0.3), champion, promote)
    assert found[0] is moved
    assert why in found[1]


def test_the_score_is_the_product_of_similarity_and_fidelity() -> None:
    def metrics(similarity: float, controllability: float) -> dict[str, object]:
        values = {"similarity": {"mean": similarity}, "controllability": {"mean": controllability}}
        return {"arms": {"adapter_mask": values}}

    assert score_of(metrics(0.6, 0.9)) == pytest.approx(0.54)
    assert score_of(metrics(-0.2, -0.5)) == 0


def test_without_a_tracker_there_is_no_registry(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no tracker"):
        run(make_context(tmp_path))


# Checksums


def test_checksums_name_the_file_that_changed(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "weights").write_bytes(b"abc")
    (tmp_path / "config.json").write_text("{}")
    recorded = folder_checksums(tmp_path)
    assert list(recorded) == ["config.json", "unet/weights"]
    verify_checksums(tmp_path, recorded)
    (tmp_path / "unet" / "weights").write_bytes(b"abd")
    with pytest.raises(DamagedArtifactError, match=r"unet/weights is damaged"):
        verify_checksums(tmp_path, recorded)
    (tmp_path / "config.json").unlink()
    with pytest.raises(DamagedArtifactError, match=r"config\.json is missing"):
        verify_checksums(tmp_path, recorded)


# Lineage


def test_a_lineage_goes_back_to_the_first_stage(tmp_path: Path) -> None:
    def commit(stage: str, fingerprint: str, inputs: dict[str, str]) -> Path:
        output = commit_stage(store, stage, StageResult(rows={"rows": 3}), ingredients(fingerprint, inputs))
        return on_disk(output.folder)

    store = Store(tmp_path / "run")
    store.folder.mkdir()
    first = commit("ingest", "web", {})
    plan = commit("curriculum", "plan", {"filter": "0000deleted0", "ingest": first.name})
    adapter = commit("train_adapter", "adapter", {"curriculum": plan.name, "ingest": first.name})
    lineage = lineage_of({"train_adapter": adapter})
    assert list(lineage) == ["curriculum", "filter", "ingest", "train_adapter"]
    assert lineage["filter"] == {"fingerprint": "0000deleted0"}
    assert lineage["curriculum"]["fingerprint"] == plan.name
    assert lineage["ingest"]["config"] == {"setting": "web"}
    assert lineage["ingest"]["rows"] == {"rows": 3}


def ingredients(setting: str, inputs: dict[str, str]) -> Ingredients:
    return Ingredients(config={"setting": setting}, inputs=inputs, files={}, code="c0de")


# The model


@pytest.mark.parametrize("method", [RealCustomPlusAdapter, RealCustomAdapter])
def test_the_model_paints_with_either_method(method: type[VisualAdapter], tmp_path: Path) -> None:
    backbone = write_random_backbone(tmp_path / "backbone")
    adapter = write_random_adapter(tmp_path / "adapter", backbone, method=method)
    config = Config()
    settings = {
        "adapter": "fingerprint",
        "parts": {"backbone": {"digest": "digest", "checksums": folder_checksums(backbone), "file": ""}},
        "parts_place": "",
        "dtype": "float32",
        "loading": loading_options(config.backbone),
        "painting": asdict(config.inference.with_steps(2)),
        "clip": "clip",
        "checksums": {"adapter": folder_checksums(adapter)},
    }
    (tmp_path / "inference.json").write_text(json.dumps(settings))
    files = {"adapter": adapter, "inference": tmp_path / "inference.json"}
    here = {PARTS_HERE: {"backbone": str(backbone)}}
    context = PythonModelContext({name: str(path) for name, path in files.items()}, here)
    model = RealwordModel()
    model.load_context(context)
    assert type(model.painter.pipeline.adapter) is method
    request = PaintRequest(subject=picture(), word="mug", prompt="a photo of a mug in the snow")
    (painting,) = model.predict(context, [request])
    assert Image.open(io.BytesIO(base64.b64decode(painting.picture))).size == (64, 64)
    subjects = [{"picture": base64.b64decode(request.subject), "word": request.word}]
    prepared = model.painter.prepare(request.prompt, subjects)
    other = model.painter.prepare(request.prompt, subjects, [1], steps=3)
    (same,), (different,) = (model.painter.paint(request.pictures) for request in (prepared, other))
    assert base64.b64encode(same.picture).decode() == painting.picture
    assert same.mask is not None
    assert base64.b64encode(same.mask).decode() == painting.mask
    assert different.picture != same.picture


# The registry


@pytest.mark.slow
def test_versions_and_their_champion(registry: Registry) -> None:
    name = {"model_name": "five-versions"}
    first, result = registry.register(0.6, register=name)
    assert first == {
        "name": "five-versions",
        "version": "1",
        "alias_moved": True,
        "uri": "models:/five-versions/1",
        "score": pytest.approx(0.3),
        "why": "there was no champion before",
        "concepts": [],
    }
    assert result.metrics["score"] == pytest.approx(0.3)
    assert not registry.register(0.5, register=name)[0]["alias_moved"]
    assert registry.register(0.7, register=name)[0]["alias_moved"]
    assert not registry.register(0.9, evaluation="with other prompts", register=name)[0]["alias_moved"]
    assert registry.client.get_model_version_by_alias("five-versions", "champion").version == 3
    assert registry.register(0.1, register={**name, "promote": True})[0]["alias_moved"]
    champion = registry.client.get_model_version_by_alias("five-versions", "champion")
    assert champion.version == 5
    assert champion.tags["lineage.train_adapter"] == "train_adapter"  # a folder without a manifest, by its name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["realword-v1.0", "модель", "7", "-a.b-_c", "x" * 200])
def test_every_name_that_the_configuration_takes_can_be_registered(registry: Registry, name: str) -> None:
    assert load_config("micro", [f"register.model_name={name}"]).register.model_name == name
    registered, _ = registry.register(0.6, register={"model_name": name})
    assert registered["uri"] == f"models:/{name}/1"


@pytest.mark.parametrize("name", ["team/mug", "mug 50%", "a:b", ".hidden", "..", 'a"b', "a'b", "", "x" * 201, "a\n"])
def test_other_names_are_refused_with_the_configuration(name: str) -> None:
    with pytest.raises(UsageError, match=r"register\.model_name takes a name of letters"):
        config_from_dict({"register": {"model_name": name}})


_ELSEWHERE = """
import json, sys
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_registry_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(f"models:/{sys.argv[2]}@champion")
request = json.loads(sys.stdin.read())
paintings = model.predict([request, {**request, "seed": 7, "steps": 3}])
import model as package
print(json.dumps({"code": package.__file__, "pictures": [painting.picture for painting in paintings]}))
"""


@pytest.mark.slow
def test_the_model_works_without_the_project(registry: Registry, tmp_path: Path) -> None:
    """In a process that does not find the project, from the artifacts alone."""
    request = {"subject": picture(), "word": "mug", "prompt": "a photo of a mug in the snow"}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", _ELSEWHERE, registry.uri, NAME],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert str(registry.root / "artifacts") in answer["code"]
    pictures = [Image.open(io.BytesIO(base64.b64decode(one))) for one in answer["pictures"]]
    assert [one.size for one in pictures] == [(64, 64), (64, 64)]
    assert (np.asarray(pictures[0]) != np.asarray(pictures[1])).any()


@pytest.mark.slow
def test_invalid_requests_and_damaged_files_are_refused(registry: Registry, tmp_path: Path) -> None:
    import mlflow

    mlflow.set_tracking_uri(registry.uri)
    mlflow.set_registry_uri(registry.uri)
    stored = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}@champion"))
    copy = tmp_path / "copy"
    shutil.copytree(stored, copy)
    model = mlflow.pyfunc.load_model(str(copy))
    request = {"subject": picture(), "word": "mug", "prompt": "a photo of a mug in the snow"}
    for change, message in (
        ({"word": "dragon"}, r"dragon.*mug.*snow"),
        ({"subject": base64.b64encode(b"hello").decode()}, "picture"),
        ({"subject": "???"}, "base64"),
        ({"colour": "red"}, "colour"),
    ):
        with pytest.raises((ValueError, mlflow.MlflowException), match=message):
            model.predict([request, {**request, **change}])

    weights = next(copy.rglob("adapter/*.safetensors"))
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"adapter/.*is damaged"):
        mlflow.pyfunc.load_model(str(copy))
    mlflow.pyfunc.load_model(str(copy), model_config={VERIFY_CHECKSUMS: False})  # the server has verified its files
