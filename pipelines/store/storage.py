"""What lies in a run folder, how to free it: what other configurations have made stays until the user removes it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pipelines.config.keys import nearest
from pipelines.errors import PipelineError, UsageError
from pipelines.store.manifest import MANIFEST
from pipelines.store.store import Output, Store


class State(Enum):
    """What an entry is."""

    IN_USE = "in use"  # the last run's output, or one that such an output was made from
    OLD = "old"  # an output of another configuration or code
    RESUMABLE = "interrupted"  # the last run's configuration goes on from there
    UNFINISHED = "unfinished"  # interrupted, of another configuration or code


#: What can be removed together, by its name on the command line.
GROUPS = {"old": State.OLD, "unfinished": State.UNFINISHED}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A folder of the store: a committed output, or what an interrupted stage has left.

    Attributes:
        name: "stage/fingerprint", or "stage/fingerprint.partial" of a stage that was interrupted.
        size: Bytes.
        changed: Seconds since 1970.
        checkpoints: Of trainings in it.
    """

    name: str
    folder: Path
    state: State
    size: int
    changed: float
    checkpoints: int


def list_entries(store: Store, expected: Mapping[str, str]) -> list[Entry]:
    """All entries, by stage and age. `expected` are the fingerprints of the last run's configuration, by stage."""
    used = _used_outputs(store)
    found = [
        _entry(folder, used, expected)
        for folder in sorted((store.folder / "stages").glob("*/*"))
        if folder.is_dir() and not folder.is_symlink()
    ]
    return sorted(found, key=lambda entry: (entry.name.split("/")[0], -entry.changed))


def choose(entries: Sequence[Entry], wanted: Collection[str]) -> list[Entry]:
    """The entries to remove: those of a group, or single ones by their names.

    Raises:
        UsageError: There is no such entry, or the last run uses it; nothing is to be removed then.
    """
    known = {entry.name: entry for entry in entries}
    chosen: dict[str, Entry] = {}
    for name in wanted:
        if name in GROUPS:
            chosen |= {entry.name: entry for entry in entries if entry.state is GROUPS[name]}
        elif name not in known:
            raise UsageError(f"There is no {name!r} in the run folder.{nearest(name, [*known, *GROUPS])}")
        elif known[name].state is State.IN_USE:
            raise UsageError(f"{name} cannot be removed: the last run uses it.")
        else:
            chosen[name] = known[name]
    return list(chosen.values())


def remove(store: Store, entries: Sequence[Entry]) -> None:
    """Delete entries. Call it while the store is locked.

    Raises:
        PipelineError: An entry does not lie in the run folder, or cannot be deleted.
    """
    stages = (store.folder / "stages").resolve()
    for entry in entries:
        if entry.folder.resolve().parent.parent != stages:
            raise PipelineError(f"{entry.folder} does not lie in {stages}; nothing more was removed.")
        try:
            (entry.folder / MANIFEST).unlink(missing_ok=True)  # first: an output without a manifest is none
            shutil.rmtree(entry.folder)
        except OSError as error:
            raise PipelineError(f"{entry.folder} cannot be removed ({error.strerror}); nothing more was.") from error


def _entry(folder: Path, used: Collection[tuple[str, str]], expected: Mapping[str, str]) -> Entry:
    stage, fingerprint = folder.parent.name, folder.name.partition(".")[0]
    if (folder / MANIFEST).is_file():
        state = State.IN_USE if (stage, folder.name) in used else State.OLD
    else:
        state = State.RESUMABLE if expected.get(stage) == fingerprint else State.UNFINISHED
    status = [file.lstat() for file in folder.rglob("*") if not file.is_dir()]
    return Entry(
        name=f"{stage}/{folder.name}",
        folder=folder,
        state=state,
        size=sum(one.st_size for one in status),
        changed=max((one.st_mtime for one in status), default=folder.stat().st_mtime),
        checkpoints=sum(1 for _ in folder.glob("scratch/train/*/step-*")),
    )


def _used_outputs(store: Store) -> set[tuple[str, str]]:
    """The latest outputs, and all that they were made from, by stage and fingerprint."""
    used: set[tuple[str, str]] = set()
    waiting: list[Output] = list(store.latest_outputs().values())
    while waiting:
        output = waiting.pop()
        if (output.stage, output.fingerprint) not in used:
            used.add((output.stage, output.fingerprint))
            waiting += _inputs(store, output)
    return used


def _inputs(store: Store, output: Output) -> Iterator[Output]:
    try:
        inputs = output.manifest.inputs
    except PipelineError:  # a damaged manifest names none
        return
    for stage, fingerprint in inputs.items():
        found = store.output(stage, fingerprint)
        if found is not None:
            yield found


def age(entry: Entry) -> str:
    """How long ago an entry was changed, in a unit that suits."""
    seconds = max(0.0, time.time() - entry.changed)
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
