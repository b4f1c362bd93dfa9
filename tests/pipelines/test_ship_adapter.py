"""Replacing the adapter that ships with the code by the adapter of a run."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

import pytest

from model.micro_sd.shipped_adapter import ADAPTER_FOLDER, find_shipped_model
from model.micro_sd.weights import WEIGHTS_FOLDER
from pipelines.cli.arguments import parse_arguments
from pipelines.config.loading import config_to_dict, load_config, with_values
from pipelines.errors import PipelineError
from pipelines.fingerprint import Ingredients
from pipelines.ship_adapter import main, ship_adapter, training_command
from pipelines.store.store import Store
from stages.contract import StageResult
from stages.local_copies import local_copy
from tests.support.random_backbone import write_random_backbone
from tests.support.toy_pipeline import commit_stage

SETTINGS = ["curriculum.steps=2000", "train_adapter.trainer.use_gpu=true", "train_adapter.trainer.learning_rate=3e-4"]


def a_run(folder: Path, base: Path) -> Store:
    """A run folder whose adapter, the shipped one, was trained on `base`."""
    store = Store(folder)
    first = Ingredients(config={}, inputs={}, files={}, code="base")
    work = store.begin("base", first.fingerprint, restart=True)
    shutil.copytree(base, local_copy(work.output) / "backbone", copy_function=os.symlink)
    commit_stage(store, "base", StageResult(), first, work)
    second = Ingredients(
        config={"backbone.high_resolution_tiles": 3}, inputs={"base": first.fingerprint}, files={}, code="adapter"
    )
    work = store.begin("train_adapter", second.fingerprint, restart=True)
    shutil.copytree(ADAPTER_FOLDER, local_copy(work.output) / "adapter")
    result = StageResult(metrics={"loss": 0.25}, notes={"steps": "2000"})
    commit_stage(store, "train_adapter", result, second, work)
    stages = {"base": first.fingerprint, "train_adapter": second.fingerprint}
    store.write_latest(config_to_dict(load_config("micro", [f"run.folder={folder}", *SETTINGS])), stages)
    return store


def test_the_adapter_of_a_run_is_written_with_its_training(tmp_path: Path) -> None:
    store = a_run(tmp_path / "run", WEIGHTS_FOLDER)
    ship_adapter(store.local_folder, tmp_path / "adapter")
    found = find_shipped_model(adapter=tmp_path / "adapter")
    assert found.loading["tiles"] == 3, "as when the adapter was trained"
    card = (tmp_path / "adapter" / "README.md").read_text()
    for part in ("| steps | 2000 |", "| loss | 0.25 |", "--set curriculum.steps=2000", "pipelines.ship_adapter"):
        assert part in card
    assert str(tmp_path) not in card


def test_the_command_of_the_card_trains_with_the_same_settings(tmp_path: Path) -> None:
    settings = [
        *SETTINGS,
        "filter.caption_script=null",
        "train_adapter.sample_every=null",
        "train_adapter.sample_prompts=['a {word}, wet', \"{word}'s\"]",
        "run.cpus=2",
    ]
    config = load_config("micro", ["run.folder=RUN_FOLDER", *settings])
    words = shlex.split(training_command(with_values(config, {"evaluate.subjects": 3})))
    assert words[:2] == ["python", "pipeline.py"]
    arguments = parse_arguments(words[2:])
    assert (arguments.stage, load_config(arguments.profile, arguments.settings)) == ("train_adapter", config)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    store = a_run(tmp_path / "run", write_random_backbone(tmp_path / "random"))
    with pytest.raises(PipelineError, match=r"trained on another base .*; train it with the base that ships"):
        ship_adapter(store.local_folder, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"error: Nothing has run in {tmp_path} yet; start with python pipeline.py run --stage all.\n"
    )
