"""The checkpoints of a training: one folder each, written by all workers together, readable by any number of them.

    step-00000100/
      rank-0.safetensors ..  each worker's share of the state, whole tensors by name
      training.json          step, loss, configuration, ...; by rank 0
      rank-0-of-8.json ..    the checksums of what a worker has written; written last

A folder with the checksums of every worker is complete. Any other folder was left by a killed training and is no
checkpoint. There are no pickles, and the state does not depend on how ZeRO partitioned it.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.checksums import file_checksum
from stages.contract import StageError

_STATE_FILE = "training.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, complete or being written."""

    folder: Path

    @property
    def step(self) -> int:
        """The number of steps done."""
        return int(self.folder.name.removeprefix("step-"))

    def state(self) -> dict[str, Any]:
        """The content of `training.json`."""
        state: dict[str, Any] = json.loads((self.folder / _STATE_FILE).read_text())
        return state

    def is_complete(self) -> bool:
        """Whether every worker has written its share."""
        lists = list(self.folder.glob("rank-*-of-*.json"))
        return bool(lists) and len(lists) == int(lists[0].stem.rpartition("-")[2])

    def check(self) -> None:
        """Compare every file with its checksum.

        Raises:
            StageError: A file is missing or damaged; one sentence that names it.
        """
        for sums in sorted(self.folder.glob("rank-*.json")):
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
        for file in sorted(self.folder.glob("rank-*.safetensors")):
            with safe_open(file, "pt") as share:
                names = share.keys()
                for name in names:
                    yield name, share.get_tensor(name)

    def write_share(
        self, rank: int, world: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any] | None
    ) -> None:
        """Write the share of worker `rank` of `world`: its tensors (on the CPU), and on rank 0 the state.

        Raises:
            StageError: The disk is full or cannot be written; one sentence.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            share = self.folder / f"rank-{rank}.safetensors"
            save_file(dict(tensors), share)
            mine = [share]
            if state is not None:
                (self.folder / _STATE_FILE).write_text(json.dumps(state, indent=1))
                mine.append(self.folder / _STATE_FILE)
            sums = {file.name: file_checksum(file) for file in mine}
            partial = self.folder / f"rank-{rank}.partial"
            partial.write_text(json.dumps(sums))
            partial.rename(self.folder / f"rank-{rank}-of-{world}.json")
        except (OSError, SafetensorError) as error:
            full = "No space left" in str(error)
            reason = "its disk is full" if full else str(error)
            raise StageError(
                f"checkpoint {self.folder} cannot be written ({reason}): free some space or make the folder writable, "
                "and run again to resume from the last checkpoint."
            ) from error


@dataclass(frozen=True)
class CheckpointFolder:
    """All checkpoints of a training.

    Attributes:
        keep: The number of latest checkpoints to keep, besides the one with the lowest loss.
    """

    folder: Path
    keep: int = 1

    def at(self, step: int) -> Checkpoint:
        """The checkpoint after `step` steps, whether it exists or not."""
        return Checkpoint(self.folder / f"step-{step:08d}")

    def complete(self) -> list[Checkpoint]:
        """The complete checkpoints in the order of their steps."""
        found = [Checkpoint(folder) for folder in sorted(self.folder.glob("step-*"))]
        return [checkpoint for checkpoint in found if checkpoint.is_complete()]

    def latest(self) -> Checkpoint | None:
        """The checkpoint to resume from."""
        return next(reversed(self.complete()), None)

    def remove_incomplete(self) -> None:
        """Delete incomplete checkpoints. No worker may be writing."""
        whole = self.complete()
        for folder in self.folder.glob("step-*"):
            if Checkpoint(folder) not in whole:
                shutil.rmtree(folder)

    def prune(self) -> None:
        """Delete the checkpoints that need not be kept; incomplete ones stay."""
        whole = self.complete()
        kept = whole[-self.keep :] + sorted(whole, key=_loss)[:1]
        for checkpoint in whole:
            if checkpoint not in kept:
                shutil.rmtree(checkpoint.folder)


def _loss(checkpoint: Checkpoint) -> float:
    try:
        loss = checkpoint.state()["loss"]
    except json.JSONDecodeError:  # damaged: not the best
        return math.inf
    return math.inf if loss is None else float(loss)


class CheckpointWriter:
    """Writes one worker's shares in a thread beside the training, one at a time."""

    def __init__(self, folder: CheckpointFolder, rank: int, world: int) -> None:
        self._folder, self._rank, self._world = folder, rank, world
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
        self._folder.at(step).write_share(self._rank, self._world, tensors, state)
        if self._rank == 0:
            self._folder.prune()


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """How two flat configurations differ, as "learning_rate is 0.1 there and 0.2 now"; None when they are equal."""
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    shown = [f"{key} is {then.get(key)!r} there and {now.get(key)!r} now" for key in keys[:3]]
    more = [f"{len(keys) - 3} more differ"] if len(keys) > 3 else []
    return ", ".join([*shown, *more]) or None
