"""The checkpoints of a training: one folder each, written by all workers together, readable by any number of them.

    step-00000100/
      rank-0-of-8.safetensors ..  each worker's share of the state, whole tensors by name
      training.json               step, loss, configuration, ...; by rank 0
      rank-0-of-8.json ..         the checksums of what a worker has written; written last

A folder with the checksums of every worker is complete. Any other folder was left by a killed training and is no
checkpoint. There are no pickles, and the state does not depend on how ZeRO partitioned it. In an object store a worker
writes its share on its own disk first; what the store has is known from one listing.
"""

from __future__ import annotations

import json
import math
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.checksums import file_checksum
from stages.contract import StageError
from stages.local_copies import local_copy
from stages.storage import StorePath, local_folder, remove, write_whole
from stages.storage_errors import storage_error

_STATE_FILE = "training.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, complete or being written."""

    folder: StorePath

    @property
    def step(self) -> int:
        """The number of steps done."""
        return int(self.folder.name.removeprefix("step-"))

    def state(self) -> dict[str, Any]:
        """The content of `training.json`.

        Raises:
            StageError: It is damaged; one sentence.
        """
        file = self.folder / _STATE_FILE
        try:
            state: dict[str, Any] = json.loads(file.read_text())
        except ValueError as error:
            raise StageError(f"checkpoint file {file} is damaged (it is not JSON)") from error
        return state

    def is_complete(self) -> bool:
        """Whether every worker has written its share."""
        return _world_of(file.name for file in self.folder.glob("rank-*")) is not None

    def local(self) -> LocalCheckpoint:
        """The checkpoint on this machine's disk: itself, or a copy that the machine's processes share."""
        return LocalCheckpoint(local_copy(self.folder))

    def write_share(
        self, rank: int, world: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any] | None
    ) -> None:
        """Write the share of worker `rank` of `world`: its tensors (on the CPU), and on rank 0 the state.

        Raises:
            StageError: The disk is full, or disk or store cannot be written; one sentence.
        """
        name = f"rank-{rank}-of-{world}"
        try:
            with local_folder(self.folder) as folder:
                share = folder / f"{name}.safetensors"
                save_file(dict(tensors), share)
                mine = [share]
                if state is not None:
                    (folder / _STATE_FILE).write_text(json.dumps(state, indent=1))
                    mine.append(folder / _STATE_FILE)
                sums = {file.name: file_checksum(file) for file in mine}
            write_whole(self.folder / f"{name}.json", json.dumps(sums))
        except Exception as error:  # each object store has exceptions of its own
            if sentence := self._failure(error):
                raise StageError(sentence) from error
            raise

    def _failure(self, error: Exception) -> str | None:
        """What it means that a share could not be written; None when it is a bug."""
        if not isinstance(self.folder, Path) and (sentence := storage_error(error, str(self.folder))):
            return f"checkpoint {sentence}"
        if not isinstance(error, OSError | SafetensorError):
            return None
        disk = "its disk" if isinstance(self.folder, Path) else f"the disk of {socket.gethostname()}"
        reason = f"{disk} is full" if "No space left" in str(error) else str(error)
        return (
            f"checkpoint {self.folder} cannot be written ({reason}): free some space or make the folder writable, "
            "and run again to resume from the last checkpoint."
        )


@dataclass(frozen=True)
class LocalCheckpoint:
    """A complete checkpoint on this machine's disk."""

    folder: Path

    def check(self) -> None:
        """Compare every file with its checksum.

        Raises:
            StageError: A file is missing or damaged; one sentence that names it.
        """
        for sums in self._files("json"):
            try:
                recorded = json.loads(sums.read_text())
            except json.JSONDecodeError as error:
                raise StageError(f"checkpoint file {sums} is damaged (it is not JSON)") from error
            for name, expected in recorded.items():
                file = self.folder / name
                if not file.is_file() or file_checksum(file) != expected:
                    raise StageError(f"checkpoint file {file} is damaged (its checksum is not the one in {sums.name})")

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The state's tensors with their names, one at a time, on the CPU."""
        for file in self._files("safetensors"):
            with safe_open(file, "pt") as share:
                names = share.keys()
                for name in names:
                    yield name, share.get_tensor(name)

    def _files(self, suffix: str) -> list[Path]:
        """The files of the workers that completed it. Others, of another number of workers, may have begun it."""
        world = _world_of(file.name for file in self.folder.iterdir())
        return sorted(self.folder.glob(f"rank-*-of-{world}.{suffix}"))


@dataclass(frozen=True)
class CheckpointFolder:
    """All checkpoints of a training.

    Attributes:
        keep: The number of latest checkpoints to keep, besides the one with the lowest loss.
    """

    folder: StorePath
    keep: int = 1

    def at(self, step: int) -> Checkpoint:
        """The checkpoint after `step` steps, whether it exists or not."""
        return Checkpoint(self.folder / f"step-{step:08d}")

    def complete(self) -> list[Checkpoint]:
        """The complete checkpoints in the order of their steps."""
        return [Checkpoint(self.folder / name) for name, files in self._files().items() if _world_of(files)]

    def latest(self) -> Checkpoint | None:
        """The checkpoint to resume from."""
        return next(reversed(self.complete()), None)

    def remove_incomplete(self) -> None:
        """Delete incomplete checkpoints. No worker may be writing."""
        for name, files in self._files().items():
            if not _world_of(files):
                remove(self.folder / name)

    def prune(self) -> None:
        """Delete the checkpoints that need not be kept; incomplete ones stay."""
        whole = self.complete()
        if len(whole) <= self.keep:
            return
        kept = whole[-self.keep :] + sorted(whole, key=_loss)[:1]
        for checkpoint in whole:
            if checkpoint not in kept:
                remove(checkpoint.folder)

    def _files(self) -> dict[str, list[str]]:
        """The names of the files of each folder of a checkpoint, in the order of their steps."""
        if isinstance(self.folder, Path):
            found = {folder.name: [file.name for file in folder.iterdir()] for folder in self.folder.glob("step-*")}
        else:
            found = {}
            for path in map(PurePosixPath, self.folder.fs.find(self.folder.path)):
                if path.parent.name.startswith("step-"):
                    found.setdefault(path.parent.name, []).append(path.name)
        return dict(sorted(found.items()))


def _world_of(files: Iterable[str]) -> int | None:
    """How many workers have written a checkpoint, by its files' names; None when the list of one is missing."""
    worlds = Counter(
        int(name.removesuffix(".json").rpartition("-")[2])
        for name in files
        if name.startswith("rank-") and name.endswith(".json")
    )
    return next((world for world, count in worlds.items() if count == world), None)


def _loss(checkpoint: Checkpoint) -> float:
    try:
        loss = checkpoint.state()["loss"]
    except StageError:  # damaged: not the best
        return math.inf
    return math.inf if loss is None else float(loss)


class CheckpointWriter:
    """Writes one worker's shares in a thread beside the training, one at a time.

    `first` is called in this thread before each share is written.
    """

    def __init__(
        self, folder: CheckpointFolder, rank: int, world: int, first: Callable[[], None] = lambda: None
    ) -> None:
        self._folder, self._rank, self._world, self._first = folder, rank, world, first
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def write(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any] | None) -> None:
        """Start writing, after the previous share is written; raises the error of the previous one."""
        self.wait()
        self._pending = self._thread.submit(self._write, step, tensors, state)

    def check(self) -> None:
        """Raise the error of a failed write. Call it after every step, because later steps would be lost too."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until everything is written; raises the error of a failed write."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _write(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any] | None) -> None:
        self._first()
        self._folder.at(step).write_share(self._rank, self._world, tensors, state)
        if self._rank == 0:
            self._folder.prune()


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """How two flat configurations differ, as "learning_rate is 0.1 there and 0.2 now"; None when they are equal."""
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    shown = [f"{key} is {then.get(key)!r} there and {now.get(key)!r} now" for key in keys[:3]]
    more = [f"{len(keys) - 3} more differ"] if len(keys) > 3 else []
    return ", ".join([*shown, *more]) or None
