"""Learned concepts that clients have uploaded: their folder, which survives a restart, and its concepts in a painter.

    <run folder>/served_concepts/<name>/      concept.json and safetensors files, as `write_concept` writes them

A concept is there as a whole or not at all: a folder gets its name when it is complete. The front writes, and painters
notice before each request what has changed. This module imports nothing of `model`, as `stages.serve.served_model`
explains.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.serve.served_model import ServedConcept
from stages.serve.version_files import VersionFiles

#: In the run folder.
FOLDER = "served_concepts"
DESCRIPTION = "concept.json"
MAX_NAME = 64
_NAME = re.compile(r"[A-Za-z0-9_-]([A-Za-z0-9._-]*[A-Za-z0-9_-])?")
#: Windows has devices of these names in every folder.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_INCOMPLETE = ".incomplete-"
_INCOMPLETE_SECONDS = 3600  # after which one that a killed server has left is deleted


def is_concept_name(name: str) -> bool:
    """Whether an uploaded concept can have this name: it is that of a folder, on any system."""
    return len(name) <= MAX_NAME and bool(_NAME.fullmatch(name)) and not _DEVICE.fullmatch(name)


@dataclass(frozen=True, kw_only=True)
class OtherFiles:
    """Files of another tool with what they do not say.

    Attributes:
        names: In the order in which they were sent.
        placeholder: As it is written in prompts.
        word: The class word.
    """

    names: tuple[str, ...]
    placeholder: str
    word: str


class ConceptFolder:
    """The uploaded concepts on the disk.

    Args:
        folder: Made when the first one is stored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """Of all of them."""
        if not self.folder.is_dir():
            return []
        found = (path.name for path in self.folder.iterdir() if is_concept_name(path.name))
        return sorted(name for name in found if self.version(name) is not None)

    def version(self, name: str) -> tuple[int, int] | None:
        """Another one when the concept was deleted and uploaded again; None if there is none."""
        if not is_concept_name(name):
            return None
        try:
            status = (self.folder / name / DESCRIPTION).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    @contextmanager
    def incomplete(self) -> Iterator[Path]:
        """A new folder to write into, which is deleted after the block."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._delete_abandoned()
        folder = Path(tempfile.mkdtemp(prefix=_INCOMPLETE, dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep(self, folder: Path, name: str) -> None:
        """Give a complete folder its name.

        Raises:
            OSError: There is one of that name already.
        """
        folder.rename(self.folder / name)

    def delete(self, name: str) -> None:
        """Delete a concept."""
        with self.incomplete() as folder:
            (self.folder / name).rename(folder / name)

    def _delete_abandoned(self) -> None:
        for folder in self.folder.glob(f"{_INCOMPLETE}*"):
            try:
                is_abandoned = folder.stat().st_mtime < time.time() - _INCOMPLETE_SECONDS
            except OSError:  # another request has just finished
                continue
            if is_abandoned:
                shutil.rmtree(folder, ignore_errors=True)


class UploadedConcepts:
    """The uploaded concepts of a painter, which are what the folder has now. Its methods can be called in any thread.

    Args:
        folder: With the concepts.
        concepts: The painter's, a `model.painting.concepts.Concepts`.
        registered: Names of the registry's concepts, which uploaded ones do not replace.
    """

    def __init__(self, folder: ConceptFolder, concepts: Any, registered: Iterable[str]) -> None:
        self._folder = folder
        self._concepts = concepts
        self._registered = {name.lower() for name in registered}
        self._versions: dict[str, tuple[int, int]] = {}
        self._served: dict[str, ServedConcept] = {}
        self._lock = threading.Lock()

    def refresh(self, names: Iterable[str]) -> None:
        """Offer concepts that are new in the folder, and withdraw those that are gone."""
        with self._lock:
            for name in names:
                self._refresh(name)

    def served(self) -> tuple[ServedConcept, ...]:
        """All that requests can name now."""
        with self._lock:
            for name in {*self._folder.names(), *self._versions}:
                self._refresh(name)
            return tuple(self._served[name] for name in sorted(self._served))

    def check(self, folder: Path, name: str, other: OtherFiles | None) -> Path:
        """Check files that are to be uploaded.

        Args:
            folder: With the files; those of another tool are converted into a folder beside it.
            name: Of the concept.
            other: Says more about files of another tool; None: the files are a concept's folder.

        Returns:
            The folder of the concept.

        Raises:
            ValueError: They are no concept for this model; one sentence, without a path.
        """
        try:
            if other is None:
                self._concepts.check(name, folder)
                return folder
            converted = folder.with_name("converted")
            files = [folder / file for file in other.names]
            self._concepts.convert(files, converted, placeholder=other.placeholder, word=other.word, subject=name)
            self._concepts.check(name, converted)
            return converted
        except ValueError as error:
            raise ValueError(_without_paths(str(error), folder.parent)) from error
        except Exception as error:  # of libraries that read what was made to break them
            logging.getLogger(__name__).exception("An uploaded concept cannot be read.")
            raise ValueError("the files cannot be read as a concept.") from error

    def _refresh(self, name: str) -> None:
        version = self._folder.version(name)
        if name.lower() in self._registered or self._versions.get(name) == version:
            return
        self._concepts.withdraw(name)
        self._served.pop(name, None)
        self._versions.pop(name, None)
        if version is None:
            return
        self._versions[name] = version  # also of one that cannot be offered: it is not tried again
        try:
            self._concepts.offer(name, self._folder.folder / name)
            self._served[name] = described_concept(name, self._folder.folder / name)
        except (ValueError, OSError) as error:  # of a damaged folder, or of another backbone
            logging.getLogger(__name__).error("An uploaded concept is not served: %s", error)


def described_concept(name: str, folder: Path) -> ServedConcept:
    """A concept as its concept.json describes it, which has been read without errors before."""
    description = json.loads((folder / DESCRIPTION).read_bytes())
    tokens = description.get("tokens", [description])
    return ServedConcept(
        name=name,
        files=VersionFiles(source=str(folder)),
        placeholder=", ".join(token["placeholder"] for token in tokens),
        word=", ".join(token["word"] for token in tokens),
        method=description.get("method", "textual_inversion"),
    )


def _without_paths(message: str, folder: Path) -> str:
    return re.sub(rf"{re.escape(str(folder))}/(files|converted)(/|\b)", "", message).replace("  ", " ")
