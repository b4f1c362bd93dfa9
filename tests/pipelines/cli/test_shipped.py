"""When the shipped model answers `generate` and `serve`, and what `generate` says and writes then."""

from __future__ import annotations

import functools
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import pipeline
from model.micro_sd.shipped_adapter import find_shipped_model
from pipelines.cli.painting_run import painting_run
from pipelines.cli.shipped import asks_for_default_model, shipped_model_answers
from pipelines.config.loading import config_from_dict, config_to_dict, load_config
from pipelines.errors import PipelineError
from pipelines.store.store import Store
from tests.support.command_errors import error_of

REPOSITORY = Path(__file__).resolve().parents[3]
#: Settings of a command line or of the last run, and whether the shipped model stands for the model that they ask for.
SETTINGS: dict[tuple[str, ...], bool] = {
    (): True,
    ("inference.steps=10",): True,
    ("inference.visual_scale=2", "inference.mask_binary=true"): True,
    ("serve.port=9000", "serve.replicas=2"): True,
    ("run.cpus=1",): True,
    ("run.seed=3",): True,
    ("backbone.dtype=bfloat16",): True,
    ("train_adapter.trainer.workers=1",): True,
    ("curriculum.steps=10",): True,
    ("base.workers=1",): True,
    ("register.promote=true",): True,
    ("backbone.reference_size=64",): True,
    ("train_adapter.method=realcustom++",): True,
    ("run.folder=runs/mine",): False,
    ("run.folder=runs/micro",): False,
    (" run.folder =runs/micro",): False,
    ("backbone.weights=hub/model", "evaluate.similarity=clip"): False,
    ("backbone.reference_size=96",): False,
    ("backbone.image_encoders=[clip]", "backbone.shallow_layers=[[0]]"): False,
    ("backbone.high_resolution_tiles=1",): False,
    ("base.recipe.unet.steps=10",): False,
    ("train_adapter.method=realcustom",): False,
    ("register.model_name=mine",): False,
    ("inference.steps=10", "register.model_name=mine"): False,
}


@pytest.fixture(autouse=True)
def _default_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("settings", "expected"), SETTINGS.items(), ids=lambda value: str(value))
def test_only_the_default_model_asks_for_it(settings: tuple[str, ...], expected: bool) -> None:
    assert asks_for_default_model(load_config("micro", settings), settings) is expected


@pytest.mark.parametrize("profile", ["sd15", "sdxl"])
def test_another_profile_does_not_ask_for_it(profile: str) -> None:
    assert not asks_for_default_model(load_config(profile), [])


def a_run(stages: dict[str, str], *settings: str) -> Store:
    """The default run folder after a run with these settings that has made the outputs of these stages."""
    config = load_config("micro", settings)
    store = Store.at(config.run.folder)
    store.folder.mkdir(parents=True)
    store.write_latest(config_to_dict(config), stages)
    return store


@pytest.mark.parametrize(
    ("stages", "settings", "expected"),
    [
        ({}, (), True),
        ({"base": "b", "filter": "f"}, ("train_adapter.trainer.workers=1",), True),
        ({"base": "b"}, ("train_adapter.method=realcustom",), False),
        ({"train_adapter": "gone"}, (), False),
    ],
    ids=["nothing finished", "some stages", "of another method", "a trained adapter"],
)
def test_it_answers_until_a_run_has_trained(stages: dict[str, str], settings: tuple[str, ...], expected: bool) -> None:
    store = a_run(stages, *settings)
    config = config_from_dict(store.read_latest()[0])
    assert shipped_model_answers(config, store, [], "train_adapter") is expected


def test_a_damaged_run_folder_is_an_error_and_no_reason_to_answer(tmp_path: Path) -> None:
    store = a_run({})
    store.latest_file.write_text("{")
    with pytest.raises(PipelineError, match=r"latest\.json is damaged"):
        shipped_model_answers(load_config("micro"), store, [], "register")


def test_a_registry_elsewhere_needs_no_run_here() -> None:
    """`serve` asks it for the champion, with the shipped model until there is one; `generate` needs the run."""
    elsewhere, named = ["run.tracking_uri=http://mlflow"], ["run.folder=runs/mine"]
    assert painting_run("micro", elsewhere, "register")[2]
    config, _, shipped = painting_run("micro", [*elsewhere, *named], "register")
    assert not shipped
    assert config.run.tracking_uri == "http://mlflow"
    assert not painting_run("sd15", elsewhere, "register")[2]
    with pytest.raises(PipelineError, match="Nothing has run"):
        painting_run("micro", [*elsewhere, *named], "train_adapter")


def paint(subject: Path, *words: str) -> list[str]:
    return ["generate", "--subject", str(subject), "--word", "mug", "--prompt", "a mug in the snow", *words]


def test_generate_paints_before_any_run(subject: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline.main(paint(subject, "--steps", "1")) == 0
    printed = capsys.readouterr()
    shipped = find_shipped_model()
    folder = tmp_path / "runs" / "micro"
    assert printed.err.endswith(
        f"Painted with {shipped.title} (adapter {shipped.fingerprint}), the base and adapter that ship with Realword: "
        f"there is no trained adapter in {folder} yet.\n"
    )
    files = [Path(line) for line in printed.out.splitlines()]
    assert [file.name for file in files] == ["a-mug-in-the-snow-0.png", "a-mug-in-the-snow-0-mask.png"]
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(files), "and nothing else is written"
    with Image.open(files[0]) as picture:
        made = json.loads(picture.info["realword"])
    assert (made["model"], made["adapter"]) == (shipped.title, shipped.fingerprint)


@pytest.mark.parametrize(
    "words",
    [["--profile", "sd15"], ["--set", "run.folder=runs/micro"], ["--set", "train_adapter.method=realcustom"]],
    ids=["another profile", "a named run folder", "another method"],
)
def test_generate_of_a_model_that_is_not_there(
    words: list[str], subject: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = error_of(capsys, *paint(subject, *words))
    assert code == 1
    assert said.startswith(f"Nothing has run in {tmp_path / 'runs'}")
    assert not (tmp_path / "runs").exists()


def test_generate_with_a_trained_adapter_that_is_gone(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_run({"train_adapter": "gone"})
    code, said = error_of(capsys, *paint(subject))
    assert code == 1
    assert said.startswith("There is no trained adapter in ")


def test_generate_with_a_damaged_shipped_model(
    subject: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = functools.partial(find_shipped_model, adapter=tmp_path / "adapter")
    monkeypatch.setattr("pipelines.cli.painting_model.find_shipped_model", find)
    code, said = error_of(capsys, *paint(subject))
    assert code == 1
    assert said.startswith("The model that ships with Realword cannot be used: ")


@pytest.mark.slow
def test_the_first_picture_comes_soon_and_loads_neither_ray_nor_mlflow(subject: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = paint(subject)
    code = f"import pipeline, sys; pipeline.main({words!r}); print({{'ray', 'mlflow'}} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "set()"
    # CPU time, because the wall time depends on how busy the machine is. A minute is the promise.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 30
