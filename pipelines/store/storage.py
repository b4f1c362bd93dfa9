"""What lies in a run folder, how to free it: what other configurations have made stays until the user removes it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pipelines.config.keys import nearest
from pipelines.errors import PipelineError, UsageError
from pipelines.store.manifest import MANIFEST
from pipelines.store.store import RESTART, Output, Store
from stages import storage
from stages.storage import StorePath, absolute


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
    """A folder of the store: an output, or what an interrupted stage has left.

    Attributes:
        name: "stage/fingerprint"; with ".scratch" what an interrupted stage goes on from.
        size: Bytes.
        changed: Seconds since 1970.
        checkpoints: Of trainings in it.
    """

    name: str
    folder: StorePath
    state: State
    size: int
    changed: float
    checkpoints: int


def list_entries(store: Store, expected: Mapping[str, str]) -> list[Entry]:
    """All entries, by stage and age. `expected` are the fingerprints of the last run's configuration, by stage."""
    used = _used_outputs(store)
    found = [
        _entry(folder, used, expected)
        for stage in (store.folder / "stages").iterdir()
        for folder in (stage.iterdir() if stage.is_dir() else ())
        if folder.is_dir() and not (isinstance(folder, Path) and folder.is_symlink())
    ]
    return sorted(found, key=lambda entry: (entry.name.split("/")[0], -entry.changed, entry.name))


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
    stages = absolute(store.folder / "stages")
    for entry in entries:
        if absolute(entry.folder).parent.parent != stages:
            raise PipelineError(f"{entry.folder} does not lie in {stages}; nothing more was removed.")
        try:
            storage.remove(entry.folder / MANIFEST)  # first: an output without a manifest is none
            storage.remove(entry.folder)
            storage.remove(entry.folder.with_name(f"{entry.folder.name.partition('.')[0]}{RESTART}"))
        except OSError as error:
            raise PipelineError(f"{entry.folder} cannot be removed ({error.strerror}); nothing more was.") from error


def _entry(folder: StorePath, used: Collection[tuple[str, str]], expected: Mapping[str, str]) -> Entry:
    stage, fingerprint = folder.parent.name, folder.name.partition(".")[0]
    if (folder / MANIFEST).is_file():
        state = State.IN_USE if (stage, folder.name) in used else State.OLD
    else:
        state = State.RESUMABLE if expected.get(stage) == fingerprint else State.UNFINISHED
    status = list(_files(folder))
    return Entry(
        name=f"{stage}/{folder.name}",
        folder=folder,
        state=state,
        size=sum(size for size, _ in status),
        changed=max((changed for _, changed in status), default=time.time()),
        checkpoints=sum(1 for _ in folder.glob("train/*/step-*")),
    )


def _files(folder: StorePath) -> Iterator[tuple[int, float]]:
    """The size and the time of change of each file below a folder."""
    if isinstance(folder, Path):
        for file in folder.rglob("*"):
            if not file.is_dir():
                status = file.lstat()
                yield status.st_size, status.st_mtime
        return
    for info in folder.fs.find(folder.path, detail=True).values():
        yield int(info["size"]), folder.fs.modified(info["name"]).timestamp()


def _used_outputs(store: Store) -> set[tuple[str, str]]:
    """The latest outputs, and all that they were made from, by stage and name of the folder."""
    used: set[tuple[str, str]] = set()
    waiting: list[Output] = list(store.latest_outputs().values())
    while waiting:
        output = waiting.pop()
        if (output.stage, output.folder.name) not in used:
            used.add((output.stage, output.folder.name))
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
