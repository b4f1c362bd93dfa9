"""What a run keeps on disk, and the promise that an output is there whole or not at all.

    <run folder>/
      latest.json                              the last run's configuration, and the latest output of each stage
      stages/<stage>/<fingerprint>/            a committed output: what the stage wrote, and manifest.json
      stages/<stage>/<fingerprint>.partial/    a stage at work, or one that was interrupted: output/ and scratch/
      answers/                                 language models' answers: paid for, so kept for every configuration
      logs/<stage>.log                         what the stage and its engines printed
      mlflow/                                  the tracker's records and the model registry

A stage writes into `.partial/output`; the manifest is written last, and one rename makes it an output. Interrupted
work stays, with its checkpoints, until the stage is done or the user removes it (`pipelines/store/storage.py`).
Covers a process killed at any moment. Does not cover a power cut on a disk that reorders writes: only the manifest is
synced.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import PipelineError, folder_error
from pipelines.store.manifest import MANIFEST, Manifest, file_record

#: Ends the name of the folder of a stage at work.
PARTIAL = ".partial"
#: In a partial folder: the stage is being made from scratch.
_RESTART = "restart"


@dataclass(frozen=True)
class Output:
    """A committed output of a stage."""

    stage: str
    fingerprint: str
    folder: Path

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
        for name, expected in records.items():
            path = self.folder / name
            if not path.is_file():
                return self._damage(f"{name} is missing")
            if path.stat().st_size != expected["bytes"]:
                return self._damage(f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}")
            if thorough and file_record(path) != expected:
                return self._damage(f"the checksum of {name} is not the one in its manifest")
        return None

    def _damage(self, what: str) -> str:
        return (
            f"The output of stage {self.stage} in {self.folder} is damaged: {what}; "
            f"rebuild it with --force {self.stage}."
        )


@dataclass(frozen=True)
class Store:
    """The run folder."""

    folder: Path

    @property
    def latest_file(self) -> Path:
        """Where the last run's configuration and the latest outputs are noted."""
        return self.folder / "latest.json"

    @property
    def tracking_folder(self) -> Path:
        """Where MLflow keeps its records."""
        return self.folder / "mlflow"

    def log_file(self, stage: str) -> Path:
        """What the stage and its engines print."""
        return self.folder / "logs" / f"{stage}.log"

    def partial(self, stage: str, fingerprint: str) -> Path:
        """Where the stage is at work."""
        return self.folder / "stages" / stage / f"{fingerprint}{PARTIAL}"

    def output(self, stage: str, fingerprint: str) -> Output | None:
        """The committed output, if there is one."""
        folder = self.folder / "stages" / stage / fingerprint
        retired = _retired(folder)
        if not folder.exists() and retired.exists():  # killed between the two renames of a swap
            retired.rename(folder)
        return Output(stage, fingerprint, folder) if (folder / MANIFEST).is_file() else None

    def begin(self, stage: str, fingerprint: str, *, restart: bool) -> Path:
        """An empty `output/` beside a `scratch/` in the stage's partial folder, which is returned.

        What a killed run has left in `scratch/` stays, unless `restart` asks for work from scratch and what was left is
        not of such an attempt itself: hours of forced training go on where they were interrupted.
        """
        partial = self.partial(stage, fingerprint)
        mark = partial / _RESTART
        shutil.rmtree(partial if restart and not mark.exists() else partial / "output", ignore_errors=True)
        (partial / "output").mkdir(parents=True)
        (partial / "scratch").mkdir(exist_ok=True)
        if restart:
            mark.touch()
        return partial

    def commit(self, stage: str, manifest: Manifest) -> Output:
        """Make the stage's partial output the committed one; an earlier one stays whole until that very moment."""
        partial = self.partial(stage, manifest.fingerprint)
        manifest.write(partial / "output" / MANIFEST)
        folder = self.folder / "stages" / stage / manifest.fingerprint
        retired = _retired(folder)
        shutil.rmtree(retired, ignore_errors=True)
        if folder.exists():
            folder.rename(retired)
        (partial / "output").rename(folder)
        shutil.rmtree(retired, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)
        return Output(stage, manifest.fingerprint, folder)

    def read_latest(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The last run's configuration, and the fingerprint of the latest output of each stage.

        Raises:
            PipelineError: Nothing has run in this folder.
        """
        try:
            latest = json.loads(self.latest_file.read_text())
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
        scratch = self.latest_file.with_suffix(".partial")
        scratch.write_text(json.dumps({"config": config, "stages": stages}, indent=1))
        scratch.rename(self.latest_file)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the folder, which is made when it is not there.

        Raises:
            PipelineError: Another run is at work in it, or it cannot be written to.
        """
        with self.writable():
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / ".lock").open("a+")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                lock.seek(0)
                raise PipelineError(
                    f"Another run (process {lock.read().strip() or 'unknown'}) is at work in {self.folder}; "
                    "wait for it, or use another folder with --set run.folder=..."
                ) from error
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    @contextmanager
    def writable(self) -> Iterator[None]:
        """Say in one sentence when the run folder cannot be written to."""
        try:
            yield
        except OSError as error:
            sentence = folder_error(error, self.folder)
            if sentence is None:
                raise
            raise PipelineError(sentence) from error


def _retired(folder: Path) -> Path:
    """Where an output waits while its successor takes its place."""
    return folder.with_name(f"{folder.name}.retired")
