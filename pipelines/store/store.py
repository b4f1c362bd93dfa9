"""What a run keeps in its folder, and the promise that an output is there whole or not at all.

    <run folder>/
      latest.json                              the last run's configuration, and the latest output of each stage
      stages/<stage>/<fingerprint>/            an output: what the stage wrote, and manifest.json
      stages/<stage>/<fingerprint>.scratch/    what a stage goes on from that is at work, or was interrupted
      answers/                                 language models' answers: paid for, so kept for every configuration
      logs/<stage>.log                         what the stage and its engines printed
      mlflow/                                  the tracker's records and the model registry (on a disk)

A stage writes into its output's folder. The manifest is written last, in one piece, and makes the folder an output:
this needs no rename, which an object store does not have. When an output is made again, the new one is written beside
it (`<fingerprint>.2`), and the earlier one is removed after the commit. Interrupted work stays, with its checkpoints,
until the stage is done or the user removes it (`pipelines/store/storage.py`). Covers a process killed at any moment.
Does not cover a power cut on a disk that reorders writes: only the manifest is synced.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipelines.errors import PipelineError, folder_error
from pipelines.store.lock import StoreLock, disk_lock
from pipelines.store.manifest import MANIFEST, Manifest
from stages.cache import cache_folder
from stages.storage import (
    StorageError,
    StorePath,
    file_record,
    file_records,
    modified,
    read_whole,
    remove,
    store_path,
    write_whole,
)

#: Ends the name of the folder of what a stage goes on from.
SCRATCH = ".scratch"
#: Ends the name of an output's folder when another one of the same fingerprint is there already.
SECOND = ".2"
#: Ends the name of a file beside the scratch folder: the stage is being made from scratch.
RESTART = ".restart"
#: Schemes that can be read, but not written for other processes.
_UNUSABLE = ("http", "https", "memory", "data")


@dataclass(frozen=True)
class Output:
    """A committed output of a stage."""

    stage: str
    fingerprint: str
    folder: StorePath

    @property
    def manifest(self) -> Manifest:
        """The manifest, read from disk."""
        try:
            return Manifest.read(self.folder / MANIFEST)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PipelineError(self._damage(f"{MANIFEST} cannot be read")) from error

    def damage(self, *, thorough: bool) -> str | None:
        """What is wrong with the files, in one sentence that says how to fix it; None when nothing is.

        Without `thorough` only sizes are compared, which is quick; with it every file is read for its checksum.
        """
        try:
            records = self.manifest.files
        except PipelineError as error:
            return str(error)
        found = self._records(records, thorough=thorough)
        for name, expected in records.items():
            if name not in found:
                return self._damage(f"{name} is missing")
            if found[name]["bytes"] != expected["bytes"]:
                return self._damage(f"{name} has {found[name]['bytes']} bytes instead of {expected['bytes']}")
            if thorough and any(found[name].get(key, value) != value for key, value in expected.items()):
                return self._damage(f"the checksum of {name} is not the one in its manifest")
        return None

    def _records(self, names: Iterable[str], *, thorough: bool) -> Mapping[str, Mapping[str, Any]]:
        """What is there of the named files. A store lists sizes and checksums together; a disk must read the files."""
        if not isinstance(self.folder, Path):
            return file_records(self.folder)
        present = {name: path for name in names if (path := self.folder / name).is_file()}
        record = file_record if thorough else _size
        return {name: record(path) for name, path in present.items()}

    def _damage(self, what: str) -> str:
        return (
            f"The output of stage {self.stage} in {self.folder} is damaged: {what}; "
            f"rebuild it with --force {self.stage}."
        )


@dataclass(frozen=True)
class Work:
    """Where a stage works.

    Attributes:
        output: An empty folder for what it makes; the commit writes the manifest there.
        scratch: A folder for what it goes on from after an interruption.
    """

    output: StorePath
    scratch: StorePath


@dataclass
class Store:
    """The run folder, on a disk or in an object store."""

    folder: StorePath
    _lock: StoreLock | None = field(default=None, compare=False, repr=False)

    @classmethod
    def at(cls, location: str) -> Store:
        """The run folder that a path or a URI names.

        Raises:
            PipelineError: No installed package reads the URI, or nothing can be written there for other processes.
        """
        scheme = location.partition("://")[0]
        if scheme in _UNUSABLE:
            raise PipelineError(f"run.folder: nothing can be kept at {location}; give a folder, or s3://bucket/folder.")
        try:
            return cls(store_path(location))
        except StorageError as error:
            raise PipelineError(f"run.folder: {error}") from error

    @property
    def local_folder(self) -> Path:
        """Where this machine keeps what cannot be in an object store, such as logs that grow: the folder itself, or one
        in the cache folder.
        """
        if isinstance(self.folder, Path):
            return self.folder
        return cache_folder() / "runs" / sha256(str(self.folder).encode()).hexdigest()[:16]

    @property
    def latest_file(self) -> StorePath:
        """Where the last run's configuration and the latest outputs are noted."""
        return self.folder / "latest.json"

    @property
    def tracking_folder(self) -> Path:
        """Where MLflow keeps its records, unless they are on a server."""
        return self.local_folder / "mlflow"

    def log_file(self, stage: str) -> Path:
        """What the stage and its engines print."""
        return self.local_folder / "logs" / f"{stage}.log"

    def scratch(self, stage: str, fingerprint: str) -> StorePath:
        """What the stage goes on from."""
        return self.folder / "stages" / stage / f"{fingerprint}{SCRATCH}"

    def output(self, stage: str, fingerprint: str) -> Output | None:
        """The committed output, if there is one."""
        committed = [folder for folder in self._places(stage, fingerprint) if (folder / MANIFEST).is_file()]
        if not committed:
            return None
        # Two only if a run was killed before it had removed the earlier one.
        latest = max(committed, key=lambda folder: modified(folder / MANIFEST)) if committed[1:] else committed[0]
        return Output(stage, fingerprint, latest)

    def begin(self, stage: str, fingerprint: str, *, restart: bool) -> Work:
        """Prepare the folders in which the stage works.

        What a killed run has left in the scratch folder stays, unless `restart` asks for work from scratch and what was
        left is not of such an attempt itself: hours of forced training go on where they were interrupted.
        """
        scratch = self.scratch(stage, fingerprint)
        committed = self.output(stage, fingerprint)
        first, second = self._places(stage, fingerprint)
        output = second if committed is not None and committed.folder == first else first
        mark = scratch.with_name(f"{fingerprint}{RESTART}")
        if restart and not mark.exists():
            remove(scratch)
        remove(output)
        for folder in (output, scratch):
            folder.mkdir(parents=True, exist_ok=True)
        if restart:
            write_whole(mark, b"")
        return Work(output, scratch)

    def commit(self, stage: str, work: Work, manifest: Manifest) -> Output:
        """Make what a stage has written its output; an earlier one stays whole until that very moment.

        Raises:
            PipelineError: Another run has taken the run folder.
        """
        if self._lock is not None:
            self._lock.check()
        earlier = self.output(stage, manifest.fingerprint)
        manifest.write(work.output / MANIFEST)
        if earlier is not None:
            remove(earlier.folder / MANIFEST)  # first: an output without a manifest is none
            remove(earlier.folder)
        remove(work.scratch)
        remove(work.scratch.with_name(f"{manifest.fingerprint}{RESTART}"))
        return Output(stage, manifest.fingerprint, work.output)

    def _places(self, stage: str, fingerprint: str) -> tuple[StorePath, StorePath]:
        """Where an output may be: one takes the place of the other."""
        folder = self.folder / "stages" / stage
        return folder / fingerprint, folder / f"{fingerprint}{SECOND}"

    def read_latest(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The last run's configuration, and the fingerprint of the latest output of each stage.

        Raises:
            PipelineError: Nothing has run in this folder.
        """
        try:
            latest = json.loads(read_whole(self.latest_file))
            return latest["config"], latest["stages"]
        except FileNotFoundError as error:
            raise PipelineError(
                f"Nothing has run in {self.folder} yet; start with python pipeline.py run --stage all."
            ) from error
        except (ValueError, KeyError) as error:
            raise PipelineError(f"{self.latest_file} is damaged; remove it and run the pipeline again.") from error

    def latest_fingerprints(self) -> dict[str, str]:
        """The fingerprint of the latest output of each stage; empty before the first run."""
        return self.read_latest()[1] if self.latest_file.exists() else {}

    def latest_outputs(self) -> dict[str, Output]:
        """The latest output of each stage that has one, whatever configuration it was made with."""
        outputs = {name: self.output(name, fingerprint) for name, fingerprint in self.latest_fingerprints().items()}
        return {name: output for name, output in outputs.items() if output is not None}

    def write_latest(self, config: Mapping[str, Any], stages: Mapping[str, str]) -> None:
        """Note the configuration of a run and the outputs that it has found or made."""
        write_whole(self.latest_file, json.dumps({"config": config, "stages": stages}, indent=1))

    @contextmanager
    def locked(self, wait: Callable[[str], None] = print) -> Iterator[None]:
        """Keep other runs out of the folder, which is made when it is not there.

        Args:
            wait: Called with a sentence when it takes a while to find out whether another run is alive.

        Raises:
            PipelineError: Another run is at work in it, or it cannot be written to.
        """
        if isinstance(self.folder, Path):
            with self.writable():
                self.folder.mkdir(parents=True, exist_ok=True)
                lock = (self.folder / ".lock").open("a+")
            with disk_lock(self.folder, lock):
                yield
            return
        with ExitStack() as stack:
            with self.writable():
                self._lock = stack.enter_context(StoreLock(self.folder, wait))
            try:
                yield
            finally:
                self._lock = None

    @contextmanager
    def writable(self) -> Iterator[None]:
        """Say in one sentence when the run folder cannot be read or written to."""
        try:
            yield
        except PipelineError:
            raise
        except Exception as error:  # each object store has exceptions of its own
            sentence = folder_error(error, self.folder)
            if sentence is None:
                raise
            raise PipelineError(sentence) from error


def _size(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size}
