"""SHA-256 of the files of a model, to find damaged ones before they are used."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from model.errors import ModelError


class DamagedArtifactError(ModelError):
    """A file of a model is missing or has changed since its checksum was recorded."""


def folder_checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by its path relative to it, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_checksum(path) for path in files}


def file_checksum(path: Path) -> str:
    """SHA-256 of one file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_checksums(folder: Path, expected: Mapping[str, str]) -> None:
    """Compare the files below `folder` with their recorded checksums; other files are ignored.

    Raises:
        DamagedArtifactError: a file is missing or has changed; names the first one.
    """
    for name, checksum in expected.items():
        path = folder / name
        if not path.is_file():
            raise DamagedArtifactError(f"{path} is missing.")
        if file_checksum(path) != checksum:
            raise DamagedArtifactError(f"{path} is damaged: its checksum has changed.")
