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
from pipelines.store.store import RESTART, SCRATCH, Output, Store
from stages import storage
from stages.storage import StorePath, absolute, listed_time, names_below


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
    """An output, or what an interrupted stage has left.

    Attributes:
        name: "stage/fingerprint"; with ".scratch" what an interrupted stage goes on from.
        size: Bytes.
        changed: Seconds since 1970.
        checkpoints: Of trainings in it.
    """

    name: str
    folders: tuple[StorePath, ...]
    state: State
    size: int
    changed: float
    checkpoints: int


def list_entries(store: Store, expected: Mapping[str, str]) -> list[Entry]:
    """All entries, by stage and age. `expected` are the fingerprints of the last run's configuration, by stage."""
    used = _used_outputs(store)
    found: list[Entry] = []
    for stage in _folders(store.folder / "stages"):
        interrupted: dict[str, list[StorePath]] = {}
        for folder in _folders(stage):
            if (folder / MANIFEST).is_file():
                found.append(_entry([folder], State.IN_USE if (stage.name, folder.name) in used else State.OLD))
            else:
                interrupted.setdefault(_fingerprint(folder), []).append(folder)
        for fingerprint, folders in interrupted.items():
            state = State.RESUMABLE if expected.get(stage.name) == fingerprint else State.UNFINISHED
            found.append(_entry(folders, state))
    return sorted(found, key=lambda entry: (entry.name.split("/")[0], -entry.changed, entry.name))


def _folders(folder: StorePath) -> Iterator[StorePath]:
    for path in folder.iterdir():
        if path.is_dir() and not (isinstance(path, Path) and path.is_symlink()):
            yield path


def _fingerprint(folder: StorePath) -> str:
    return folder.name.partition(".")[0]


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
    for folder in [folder for entry in entries for folder in entry.folders]:
        if absolute(folder).parent.parent != stages:
            raise PipelineError(f"{folder} does not lie in {stages}; nothing more was removed.")
        try:
            storage.remove(folder / MANIFEST)  # first: an output without a manifest is none
            storage.remove(folder)
            storage.remove(folder.with_name(f"{_fingerprint(folder)}{RESTART}"))
        except OSError as error:
            raise PipelineError(f"{folder} cannot be removed ({error.strerror or error}); nothing more was.") from error


def _entry(folders: Sequence[StorePath], state: State) -> Entry:
    folders = sorted(folders, key=lambda folder: not folder.name.endswith(SCRATCH))
    status = [one for folder in folders for one in _files(folder)]
    return Entry(
        name=f"{folders[0].parent.name}/{folders[0].name}",
        folders=tuple(folders),
        state=state,
        size=sum(size for size, _ in status),
        changed=max((changed for _, changed in status), default=time.time()),
        checkpoints=sum(1 for folder in folders for _ in folder.glob("train/*/step-*")),
    )


def _files(folder: StorePath) -> Iterator[tuple[int, float]]:
    """The size and the time of change of each file below a folder."""
    if isinstance(folder, Path):
        for file in folder.rglob("*"):
            if not file.is_dir():
                status = file.lstat()
                yield status.st_size, status.st_mtime
        return
    for info in names_below(folder).values():
        yield int(info["size"]), listed_time(folder, info)


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
