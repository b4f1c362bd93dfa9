"""The description of a training that its workers get: what is trained, how, and where its files are."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.training.task import TrainingTask
from stages.settings import result_fields
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
        folder: Holds all files of the training; all workers can read and write it.
        name: Of the training; the files' names begin with it.
    """

    task: TrainingTask
    steps: int
    config: TrainerConfig
    seed: int
    cores: int | None
    folder: Path
    name: str
    data_workers: int = 0

    @property
    def metrics_file(self) -> Path:
        """JSON lines, see `stages.training.metrics`."""
        return self.folder / f"{self.name}.jsonl"

    @property
    def weights(self) -> Path:
        """Folder that rank 0 exports the trained weights into."""
        return self.folder / f"{self.name}-weights"

    @property
    def samples(self) -> Path:
        """Folder for the sample pictures of a `SamplingTask`."""
        return self.folder / f"{self.name}-samples"

    @property
    def checkpoints(self) -> CheckpointFolder:
        """All checkpoints."""
        return CheckpointFolder(self.folder / f"{self.name}-checkpoints", self.config.keep_checkpoints)

    @property
    def stop_request(self) -> Path:
        """A file that asks the workers, by its existence, to write a checkpoint and stop."""
        return self.folder / f"{self.name}.stop"

    @property
    def ending(self) -> Path:
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
    """The fields of a dataclass with plain values, without absolute paths, because a run folder may be moved."""
    if not dataclasses.is_dataclass(task):
        return {}
    found = {}
    for entry in dataclasses.fields(task):
        value = _compared(getattr(task, entry.name))
        path = isinstance(value, str) and Path(value).is_absolute()
        if entry.init and entry.compare and not path and _is_plain(value):
            found[entry.name] = value
    return found


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
