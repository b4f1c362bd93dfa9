"""The parts that versions share: stored once by content, and found wherever a version is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pytest

from model.checksums import verify_checksums
from model.registered_parts import MissingPartError, part_location
from stages.contract import Reporter
from stages.register.shared_parts import part_locations, store_parts
from tests.support.contexts import make_context
from tests.support.random_backbone import write_random_backbone
from tests.support.registered_model import Registry

REVISION = "0123456789" * 4

#: A file of a backbone's folder, and whether it is stored.
FILES = {
    "model_index.json": True,
    "README.md": True,
    "unet/config.json": True,
    "unet/diffusion_pytorch_model.safetensors": True,
    "unet/diffusion_pytorch_model.fp16.safetensors": True,
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors": True,
    "text_encoder/pytorch_model.bin": True,
    "text encoder/with a space.json": True,
    "tokenizer/vocab.json": True,
    "tokenizer/naïve.txt": True,
    "scheduler/scheduler_config.json": True,
    "a/b/c/deep.bin": True,
    "empty": True,
    "_underscore.json": True,
    "v1-5-pruned.safetensors": False,
    "v1-5-pruned-emaonly.ckpt": False,
    ".git/objects/ab/cdef": False,
    ".gitattributes": False,
    ".cache/huggingface/download/unet.metadata": False,
    "unet/.DS_Store": False,
    "unet/.ipynb_checkpoints/config.json": False,
}


def quiet(events: list[Mapping[str, Any]] | None = None) -> Reporter:
    return Reporter(emit=(events if events is not None else []).append)


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def nothing(uri: str, folder: str) -> str:
    raise OSError(f"no {uri}\nat all")


def located(part: Mapping[str, Any], beside: Path, place: str = "s3://away/parts") -> Path:
    return Path(part_location("backbone", part, beside, place, nothing))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "realword" / "parts"


# Storing


def test_the_files_of_a_backbone_are_stored_without_what_nobody_loads(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "backbone", {name: name.encode() for name in FILES})
    part = store_parts({"backbone": str(folder)}, str(tmp_path / "parts"), quiet())["backbone"]
    assert set(part["checksums"]) == {name for name, is_stored in FILES.items() if is_stored}
    stored = tmp_path / "parts" / part["digest"]
    verify_checksums(stored, part["checksums"])
    assert {path.relative_to(stored).as_posix() for path in stored.rglob("*") if path.is_file()} == set(
        part["checksums"]
    )


def test_one_file_is_a_part_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    file.write_bytes(b"weights")
    part = store_parts({"backbone": str(file)}, str(tmp_path / "parts"), quiet())["backbone"]
    assert located(part, tmp_path / "parts").read_bytes() == b"weights"


@pytest.mark.parametrize("name", ["folder", "store"])
def test_the_same_content_is_stored_once(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place = f"{request.getfixturevalue('bucket')}/1/parts" if name == "store" else str(tmp_path / "parts")
    files = {"config.json": b"{}", "weights/a.safetensors": b"a" * 1000}
    first = write_folder(tmp_path / "first", files)
    second = write_folder(tmp_path / "copy", files)
    changed = write_folder(tmp_path / "changed", {**files, "config.json": b"[]"})
    renamed = write_folder(tmp_path / "renamed", {"config.json": b"{}", "weights/b.safetensors": b"a" * 1000})

    def stored(folder: Path) -> tuple[str, list[str]]:
        events: list[Mapping[str, Any]] = []
        part = store_parts({"clip": str(folder)}, place, quiet(events))["clip"]
        return part["digest"], [event["note"] for event in events]

    digest, notes = stored(first)
    assert notes == ["reading the clip", "storing the clip", "storing the clip"]
    assert stored(second) == (digest, ["reading the clip"])
    assert len({digest, stored(changed)[0], stored(renamed)[0]}) == 3
    part = {"digest": digest, "file": ""}
    folder = Path(part_location("clip", part, tmp_path / "elsewhere", place, download))
    assert (folder / "weights" / "a.safetensors").read_bytes() == b"a" * 1000


def download(uri: str, folder: str) -> str:
    return str(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))


def test_an_interrupted_part_is_stored_again(tmp_path: Path) -> None:
    folder, parts = write_folder(tmp_path / "clip", {"a": b"a", "b": b"b"}), tmp_path / "parts"
    part = store_parts({"clip": str(folder)}, str(parts), quiet())["clip"]
    (parts / f"{part['digest']}.json").unlink()  # written last
    (parts / part["digest"] / "b").unlink()
    assert store_parts({"clip": str(folder)}, str(parts), quiet())["clip"] == part
    verify_checksums(parts / part["digest"], part["checksums"])
    (parts / part["digest"] / "b").write_bytes(b"damaged")
    store_parts({"clip": str(folder)}, str(parts), quiet(), again=True)  # --force register
    verify_checksums(parts / part["digest"], part["checksums"])


def test_what_is_inside_the_backbone_is_no_part_of_its_own(tmp_path: Path) -> None:
    backbone = write_folder(tmp_path / "base" / "backbone", {"clip/config.json": b"{}", "dino/config.json": b"{}"})
    config = make_context(tmp_path).config
    assert part_locations(config, {"base": backbone.parent}) == {"backbone": str(backbone)}
    siglip = write_folder(tmp_path / "siglip", {"config.json": b"{}"})
    own = {"image_encoders": ["clip", str(siglip)]}
    other = make_context(tmp_path, backbone=own, evaluate={"clip": "openai/clip"}).config
    assert part_locations(other, {"base": backbone.parent}) == {
        "backbone": str(backbone),
        "image_encoder_1": str(siglip),
        "clip": "openai/clip",
    }


# The hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub with one repository, and no network."""
    repository = tmp_path / "hub" / "models--org--siglip"
    write_folder(repository / "snapshots" / REVISION, {"config.json": b"{}", "model.safetensors": b"weights"})
    write_folder(repository, {"refs/main": REVISION.encode()})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return repository


def test_a_model_of_the_hub_is_named_with_its_revision(tmp_path: Path, hub: Path) -> None:
    (part,) = store_parts({"image_encoder_0": "org/siglip"}, str(tmp_path / "parts"), quiet()).values()
    assert part == {"hub": "org/siglip", "revision": REVISION, "files": ["config.json", "model.safetensors"]}
    assert not (tmp_path / "parts").exists()
    (hub / "refs" / "main").write_text("f" * 40)  # the hub has moved on
    assert located(part, tmp_path) == hub / "snapshots" / REVISION
    shutil.rmtree(hub)
    with pytest.raises(MissingPartError, match=rf"needs its backbone, org/siglip at revision {REVISION} of the hub"):
        located(part, tmp_path)


def test_a_model_that_only_workers_have_has_no_revision(tmp_path: Path, hub: Path) -> None:
    (hub / "snapshots" / REVISION / "model.safetensors").unlink()
    for name, repository in (("backbone", "org/other"), ("clip", "org/siglip"), ("backbone", "org/siglip")):
        events: list[Mapping[str, Any]] = []
        part = store_parts({name: repository}, str(tmp_path / "parts"), quiet(events))[name]
        assert f"has not all of {repository}" in events[0]["text"]
        assert part_location(name, part, tmp_path, "", nothing) == repository


# Loading


def test_what_a_version_lacks_is_one_sentence(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(MissingPartError) as error:
        located({"digest": "abc", "file": ""}, tmp_path)
    assert str(error.value) == (
        "the registered model needs its backbone, the folder abc of s3://away/parts, which cannot be fetched: "
        "no s3://away/parts/abc."
    )
    assert list(cache.iterdir()) == [], "nothing half fetched is left"


def test_a_fetched_part_is_kept(tmp_path: Path, cache: Path) -> None:
    write_folder(tmp_path / "store" / "abc", {"config.json": b"{}"})
    part, asked = {"digest": "abc", "file": ""}, list[str]()

    def fetch(uri: str, folder: str) -> str:
        asked.append(uri)
        return str(shutil.copytree(tmp_path / "store" / "abc", Path(folder) / "abc"))

    for _ in range(2):
        folder = Path(part_location("backbone", part, tmp_path, "s3://there/parts", fetch))
        assert (folder / "config.json").read_bytes() == b"{}"
    assert (asked, folder) == (["s3://there/parts/abc"], cache / "abc")


# The stage


@pytest.mark.slow
def test_versions_share_what_is_the_same(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    for similarity in (0.6, 0.7):
        registry.register(similarity)
    parts = tmp_path / "registry" / "artifacts" / "parts"
    (first,) = (path for path in parts.iterdir() if path.is_dir())
    assert not list((tmp_path / "registry" / "artifacts" / "models").rglob("unet"))
    write_random_backbone(registry.inputs["base"] / "backbone", seed=1)
    registry.register(0.8)
    tags = [registry.client.get_model_version("realword-micro", str(n)).tags["part.backbone"] for n in (1, 2, 3)]
    assert tags[0] == tags[1] == first.name
    assert tags[2] != tags[0]
    assert {path.name for path in parts.iterdir() if path.is_dir()} == set(tags)


@pytest.mark.slow
def test_a_registry_s_files_work_elsewhere(tmp_path: Path) -> None:
    """All of them together; or one version, as long as the registry can be reached."""
    registry = Registry(tmp_path / "registry")
    encoder = tmp_path / "encoder"
    shutil.copytree(registry.inputs["base"] / "backbone" / "clip", encoder)
    registry.register(0.6, backbone={"image_encoders": [str(encoder), "dino"]})
    shutil.rmtree(encoder)
    mlflow.set_tracking_uri(registry.uri)
    artifacts = tmp_path / "registry" / "artifacts"
    (version,) = (artifacts / "models").iterdir()
    alone = shutil.copytree(version / "artifacts", tmp_path / "alone" / "version")
    mlflow.pyfunc.load_model(str(alone))
    settings = json.loads((alone / "artifacts" / "inference.json").read_text())
    assert sorted(settings["parts"]) == ["backbone", "image_encoder_0"]
    shutil.rmtree(tmp_path / "cache")
    moved = artifacts.rename(tmp_path / "moved")
    mlflow.pyfunc.load_model(str(moved / "models" / version.name / "artifacts"))
    with pytest.raises(ValueError, match=r"needs its backbone, the folder \w+ of .*registry/artifacts/parts, which"):
        mlflow.pyfunc.load_model(str(alone))
    weights = next((moved / "parts").rglob("unet/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"unet/.*is damaged"):
        mlflow.pyfunc.load_model(str(moved / "models" / version.name / "artifacts"))


@pytest.mark.slow
def test_an_adapter_is_registered_alone(tmp_path: Path) -> None:
    """Without an evaluation it becomes the champion only when there is none, or when that is asked for."""
    registry = Registry(tmp_path / "registry")
    scored = dict(registry.inputs)
    for name in ("customize", "evaluate"):
        del registry.inputs[name]
    first, result = registry.register(0.0)
    assert (first["score"], first["alias_moved"], first["concepts"], result.metrics) == (None, True, [], {})
    second, _ = registry.register(0.0)
    assert not second["alias_moved"]
    assert "was not evaluated; move the alias with --set register.promote=true" in second["why"]
    assert registry.register(0.0, register={"promote": True})[0]["alias_moved"]
    registry.inputs.update(scored)
    assert "version 3 was not evaluated" in registry.register(0.6)[0]["why"]
