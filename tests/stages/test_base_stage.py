"""The base stage: shipped weights that fit, damaged ones, and a tiny training from scratch."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checksums import file_checksum
from model.micro_sd.recipe import Recipe
from model.micro_sd.weights import load_micro_sd, verify_weights
from stages.base.stage import PARTS, Folders, run, task_of, why_not_shipped
from stages.contract import StageError
from tests.support.contexts import make_context, on_disk
from tests.support.random_backbone import write_random_backbone


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_backbone(tmp_path_factory.mktemp("shipped"))


def test_shipped_weights_that_fit_are_copied(shipped: Path, tmp_path: Path) -> None:
    result = run(make_context(tmp_path), shipped)
    assert result.notes == {"weights": "shipped"}
    verify_weights(tmp_path / "output" / "backbone", Recipe())


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_damaged_weights_are_refused_with_the_file(shipped: Path, tmp_path: Path, damage: str) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(shipped, weights)
    file = weights / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "changed":
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    else:
        file.unlink()
    with pytest.raises(
        StageError,
        match=r"unet/diffusion_pytorch_model.safetensors is (damaged|missing).*; restore .*--force base",
    ):
        run(make_context(tmp_path), weights)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    with pytest.raises(StageError, match=r"is not a folder of the format .*; restore .*--force base"):
        run(make_context(tmp_path), tmp_path / "weights")


def tiny_recipe() -> dict[str, Any]:
    parts = {name: {"steps": 2, "batch": 4} for name in PARTS}
    return {"pool": {"count": 32}, "judge_pool": {"count": 32}, **parts}


def test_another_recipe_outdates_the_shipped_weights(shipped: Path, tmp_path: Path) -> None:
    assert why_not_shipped(shipped, Recipe()) is None
    recipe = make_context(tmp_path, base={"recipe": tiny_recipe()}).config.base.recipe
    assert "another recipe" in (why_not_shipped(shipped, recipe) or "")


def weights_of(folder: Path, part: str) -> str:
    """Checksum of the weights, without the configuration."""
    (file,) = (folder / part).glob("*.safetensors")
    return file_checksum(file)


def test_every_part_has_its_own_problem_and_recipe(tmp_path: Path) -> None:
    recipe, folders = Recipe(), Folders(tmp_path)
    tasks: dict[str, Any] = {name: task_of(name, recipe, folders) for name in PARTS}
    assert {name: type(task).__name__ for name, task in tasks.items()} == {
        "vae": "VaeTask",
        "clip": "ClipTask",
        "dino": "DinoTask",
        "judge": "JudgeTask",
        "unet": "UNetTask",
    }
    assert all(task.recipe == getattr(recipe, name) for name, task in tasks.items())
    assert tasks["judge"].pool_folder not in {tasks[name].pool_folder for name in ("vae", "clip", "dino")}


@pytest.mark.slow
def test_a_forced_stage_trains_the_unfinished_parts_although_the_shipped_weights_fit(
    ray_cluster: str, tmp_path: Path
) -> None:
    events: list[Any] = []
    context = make_context(tmp_path, events=events, base={"recipe": tiny_recipe(), "workers": 1})
    context = dataclasses.replace(context, forced=True)
    shipped = write_random_backbone(tmp_path / "shipped", recipe=context.config.base.recipe)
    finished, trained = ("vae", "clip", "dino"), ("judge", "unet")
    for name in finished:
        shutil.copytree(shipped / name, on_disk(context.scratch / "parts" / name))
    assert run(context, shipped).notes == {"weights": "trained: it was forced"}
    assert any(event["event"] == "warning" and "trained from scratch" in event["text"] for event in events)
    folder = tmp_path / "output" / "backbone"
    assert {name for name in PARTS if weights_of(folder, name) == weights_of(shipped, name)} == set(finished)
    verify_weights(folder, context.config.base.recipe)
    backbone = load_micro_sd(folder)
    assert torch.isfinite(backbone.unet(torch.randn(1, 4, 16, 16), 10, torch.randn(1, 16, 128)).sample).all()
    steps = {event["key"] for event in events if event["event"] == "metric"}
    assert {key for key in steps if key.endswith("/loss")} == {f"{name}/loss" for name in trained}
    # A second call, as after a kill just before the commit, trains nothing.
    shutil.rmtree(folder)
    events.clear()
    run(context, shipped)
    assert not [event for event in events if event["event"] == "metric"]
    verify_weights(folder, context.config.base.recipe)
