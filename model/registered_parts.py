"""The parts of a registered model that its versions share, such as the backbone, on the machine that loads it.

A part is in the registry, in a folder named by the digest of its content, or on the hub, at a revision. The module is
registered with the model: it works without the project.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from model.errors import ModelError

#: Copies the folder at a URI into a folder of this machine; returns where it is then.
Download = Callable[[str, str], str]


class MissingPartError(ModelError):
    """A part of a registered model cannot be had."""


def part_location(name: str, part: Mapping[str, Any], beside: Path, place: str, download: Download) -> str:
    """The path of a part on this machine, or its hub id if the version names no revision.

    Args:
        name: Of the part, for errors.
        part: What the version's settings say of it.
        beside: Where the parts are if this is the registry's own disk.
        place: The URI of the parts in the registry.
        download: Reads from the registry.

    Raises:
        MissingPartError: Neither has it; says what the version lacks.
    """
    if "hub" in part:
        return _snapshot(name, part)
    folder = beside / part["digest"]
    if not folder.is_dir():
        folder = _fetched(name, part["digest"], place, download)
    return str(folder / part["file"])


def _snapshot(name: str, part: Mapping[str, Any]) -> str:
    if part["revision"] is None:
        return str(part["hub"])
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(part["hub"], revision=part["revision"], allow_patterns=part["files"])
    except (OSError, ValueError) as error:
        raise MissingPartError(
            f"the registered model needs its {_words(name)}, {part['hub']} at revision {part['revision']} of the hub, "
            f"which cannot be fetched: {_reason(error)}."
        ) from error


def _fetched(name: str, digest: str, place: str, download: Download) -> Path:
    """A copy in this machine's cache, made once; an interrupted one is no copy."""
    cache = _cache_folder() / "parts"
    folder = cache / digest
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        partial = tempfile.mkdtemp(dir=cache, prefix=".")
        try:
            Path(download(f"{place}/{digest}", partial)).rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except Exception as error:  # of MLflow, of the libraries of object stores, of the disk
        if folder.is_dir():  # another process was faster
            return folder
        raise MissingPartError(
            f"the registered model needs its {_words(name)}, the folder {digest} of {place}, which cannot be fetched: "
            f"{_reason(error)}."
        ) from error
    return folder


def _words(name: str) -> str:
    return name.replace("_", " ")


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _cache_folder() -> Path:
    """As `stages.cache.cache_folder`, which is not registered with the model."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "realword"
