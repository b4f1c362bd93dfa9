"""From where each machine reads a model."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import Any

import pytest

from stages.cache import cache_folder
from stages.contract import StageError
from stages.inference import backbone_location, backbone_setting, on_this_machine
from stages.shared_config import BackboneConfig
from stages.storage import StorePath, copy_folder, store_path
from stages.training.config import TrainerConfig
from stages.training.job import TrainingJob


@pytest.mark.parametrize(
    "location", ["openai/clip-vit-base-patch32", "runwayml/stable-diffusion-v1-5", "judge", "a b/c"]
)
def test_a_hub_id_is_itself(location: str) -> None:
    assert on_this_machine(location, "backbone.weights") == location


def test_a_folder_on_the_disk_is_itself(tmp_path: Path) -> None:
    assert on_this_machine(str(tmp_path), "backbone.weights") == str(tmp_path)


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [("backbone.weights", "a hub id"), ("run.folder", "a URI"), ("evaluate.clip", "a hub id")],
)
def test_a_folder_that_a_machine_lacks_is_named_with_its_setting(tmp_path: Path, setting: str, remedy: str) -> None:
    said = (
        f"^{setting}: the machine {socket.gethostname()} has no {tmp_path}/model: put it .* set {setting} to {remedy}"
    )
    with pytest.raises(StageError, match=said):
        on_this_machine(f"{tmp_path}/model", setting)


def test_a_folder_of_a_store_is_copied(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    copy_folder(tmp_path / "model", store_path(f"{bucket}/model"))
    local = Path(on_this_machine(f"{bucket}/model", "run.folder"))
    assert local.is_relative_to(cache_folder())
    assert (local / "config.json").read_text() == "{}"
    with pytest.raises(
        StageError, match=r"^run.folder: there is nothing at s3://.*/nothing: run the stage that writes"
    ):
        on_this_machine(f"{bucket}/nothing", "run.folder")


@pytest.mark.parametrize("weights", [None, "some/hub-id"])
def test_the_backbone_is_a_uri_where_the_run_folder_is_one(weights: str | None, bucket: str, tmp_path: Path) -> None:
    config = BackboneConfig(weights=weights)
    inputs: dict[str, StorePath] = {"base": store_path(f"{bucket}/run/base")}
    assert backbone_location(config, inputs) == (weights or f"{bucket}/run/base/backbone")
    assert backbone_location(config, {"base": tmp_path}) == (weights or str(tmp_path / "backbone"))
    assert backbone_setting(config) == ("backbone.weights" if weights else "run.folder")


@dataclasses.dataclass(frozen=True)
class ModelTask:
    """The fields of a task; nothing is trained."""

    backbone: str
    pool_folder: str
    prompts: tuple[str, ...] = ("a /photo", "see s3://bucket/a")
    size: int = 3
    encoders: dict[str, list[str]] = dataclasses.field(default_factory=dict)


def job_of(task: Any, folder: StorePath) -> TrainingJob:
    return TrainingJob(task=task, steps=1, config=TrainerConfig(), seed=0, cores=1, folder=folder, name="model")


def test_a_job_reads_the_folders_of_its_task_on_each_machine(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "a.npy").write_text("1")
    copy_folder(tmp_path / "pool", store_path(f"{bucket}/pool"))
    task = ModelTask(backbone=str(tmp_path), pool_folder=f"{bucket}/pool")
    job = job_of(task, tmp_path)
    local = job.on_this_machine()
    assert isinstance(local.task, ModelTask)
    assert (Path(local.task.pool_folder) / "a.npy").read_text() == "1"
    assert dataclasses.replace(local.task, pool_folder=task.pool_folder) == task
    assert local.identity() == job.identity(), "a checkpoint of the one belongs to the other"


@pytest.mark.parametrize(
    ("task", "setting"),
    [
        (ModelTask(backbone="/no/such/folder", pool_folder="/"), "backbone.weights"),
        (ModelTask(backbone="/", pool_folder="/no/such/folder"), "run.folder"),
        (
            ModelTask(backbone="/", pool_folder="/", encoders={"image_encoders": ["clip", "/no/such/folder"]}),
            "backbone.i",
        ),
    ],
    ids=["the backbone", "a folder of the run", "an image encoder"],
)
def test_a_job_names_what_a_machine_lacks(tmp_path: Path, task: ModelTask, setting: str) -> None:
    with pytest.raises(StageError, match=rf"^{setting}.*: the machine .* has no /no/such/folder: put it there"):
        job_of(task, tmp_path).on_this_machine()
