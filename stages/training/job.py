"""The description of a training that its workers get: what is trained, how, and where its files are."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.training.task import TrainingTask
from stages.inference import check_image_encoders, on_this_machine
from stages.settings import result_fields
from stages.storage import StorePath
from stages.training.checkpoints import CheckpointFolder
from stages.training.config import TrainerConfig


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """A training.

    Attributes:
        task: What is trained; picklable.
        steps: Steps of the optimizer in all.
        seed: Of the initial weights and of all random numbers of the training.
        cores: Cores of a machine, shared by the workers on it; None: all that it has.
        data_workers: Processes for each worker that prepare the batches of a `FedTask`; 0: the worker prepares them.
        folder: Holds all files of the training; the driver and all workers can read and write it.
        name: Of the training; the files' names begin with it.
        backbone_setting: The setting of the task's backbone; its other folders are in the run folder.
    """

    task: TrainingTask
    steps: int
    config: TrainerConfig
    seed: int
    cores: int | None
    folder: StorePath
    name: str
    data_workers: int = 0
    backbone_setting: str = "backbone.weights"

    def on_this_machine(self) -> TrainingJob:
        """The job with the models of its task on this machine's disk.

        Raises:
            StageError: The machine lacks a folder that the task names.
        """
        check_image_encoders(getattr(self.task, "encoders", {}).get("image_encoders", ()))
        return dataclasses.replace(self, task=_with_local_folders(self.task, self.backbone_setting))

    @property
    def metrics_file(self) -> StorePath:
        """JSON lines, see `stages.training.metrics`, as a record of `stages.training.record`."""
        return self.folder / f"{self.name}.jsonl"

    @property
    def weights(self) -> StorePath:
        """Folder that rank 0 exports the trained weights into."""
        return self.folder / f"{self.name}-weights"

    @property
    def samples(self) -> StorePath:
        """Folder for the sample pictures of a `SamplingTask`."""
        return self.folder / f"{self.name}-samples"

    @property
    def checkpoints(self) -> CheckpointFolder:
        """All checkpoints."""
        return CheckpointFolder(self.folder / f"{self.name}-checkpoints", self.config.keep_checkpoints)

    @property
    def stop_request(self) -> StorePath:
        """A file that asks the workers, by its existence, to write a checkpoint and stop."""
        return self.folder / f"{self.name}.stop"

    @property
    def ending(self) -> StorePath:
        """A file in which rank 0 writes why the training stopped before its last step: one sentence."""
        return self.folder / f"{self.name}.ending"

    def identity(self) -> dict[str, Any]:
        """The values by which a checkpoint and a training must agree, by key: no settings of the operation."""
        trainer = {key: getattr(self.config, key) for key in result_fields(TrainerConfig)}
        task = {f"task.{key}": value for key, value in _plain_fields(self.task).items()}
        kind = type(self.task).__name__
        plain: dict[str, Any] = json.loads(
            json.dumps({"steps": self.steps, "seed": self.seed, **trainer, "task": kind, **task})
        )
        return {key: _short(value) for key, value in plain.items()}


def _plain_fields(task: Any) -> dict[str, Any]:
    """The fields of a dataclass with plain values, without paths and URIs, because a run folder may be moved."""
    if not dataclasses.is_dataclass(task):
        return {}
    found = {}
    for entry in dataclasses.fields(task):
        value = _compared(getattr(task, entry.name))
        if entry.init and entry.compare and not _is_location(value) and _is_plain(value):
            found[entry.name] = value
    return found


def _is_location(value: Any) -> bool:
    """Whether a value is an absolute path, or a URI."""
    return isinstance(value, str) and (Path(value).is_absolute() or "://" in value)


def _with_local_folders(task: Any, backbone_setting: str) -> Any:
    """The task with local copies of the folders that its fields name, where they are in an object store."""
    if not dataclasses.is_dataclass(task) or isinstance(task, type):
        return task
    values = {entry.name: getattr(task, entry.name) for entry in dataclasses.fields(task) if entry.init}
    local = {
        name: on_this_machine(value, backbone_setting if name == "backbone" else "run.folder")
        for name, value in values.items()
        if _is_location(value)
    }
    return dataclasses.replace(task, **local) if local else task


def _compared(value: Any) -> Any:
    """A value with dataclasses as dictionaries of the fields that they compare."""
    if isinstance(value, list | tuple):
        return [_compared(one) for one in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            entry.name: _compared(getattr(value, entry.name)) for entry in dataclasses.fields(value) if entry.compare
        }
    return value


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def _short(value: Any) -> Any:
    """The value, or the checksum of a long one."""
    text = json.dumps(value, sort_keys=True)
    return value if len(text) <= 200 else hashlib.sha256(text.encode()).hexdigest()[:12]
