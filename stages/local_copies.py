"""Copies, on this machine's disk, of models and other small things in an object store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from filelock import FileLock
from upath import UPath

from model.checksums import folder_checksums
from stages.cache import cache_folder
from stages.storage import REQUESTS, StorePath, copy_file, file_records, is_remote, remove, write_whole

_CHECKSUMS = "checksums.json"


def local_copy(path: StorePath) -> Path:
    """A file or a folder on this machine's disk: the path itself, or a copy of what is in the store.

    The copy is made once, in the cache folder, and its SHA-256 are compared at each use. Meant for models and other
    small things that many processes read.

    Raises:
        FileNotFoundError: There is nothing.
    """
    if isinstance(path, Path):
        return path
    records = _records_of(path)
    if not records:
        raise FileNotFoundError(f"There is no file or folder {path}.")
    key = hashlib.sha256(json.dumps([str(path), records], sort_keys=True).encode()).hexdigest()[:24]
    place = cache_folder() / "objects" / key
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(_lock_file(place)):
        if not _is_whole(place):
            _download(path, records, place)
    return place / "content" / path.name


def forget_copy(path: StorePath, copy: Path) -> None:
    """Delete what `local_copy` made of a path in a store, once no process of this machine needs it.

    Any number of processes may forget the same copy at the same time.
    """
    if is_remote(path):
        place = copy.parent.parent
        with FileLock(_lock_file(place)):
            remove(place)


def _lock_file(place: Path) -> Path:
    return place.with_suffix(".lock")


def _records_of(path: UPath) -> dict[str, dict[str, Any]]:
    """The records of the files below a folder; of a single file, its own by the name "."."""
    if below := file_records(path):
        return {"." if name == path.path else name: record for name, record in below.items()}
    return {}


def _download(path: UPath, records: Mapping[str, Any], place: Path) -> None:
    remove(place)
    content = place / "content"
    pairs = [
        (path, content / path.name) if name == "." else (path / name, content / path.name / name) for name in records
    ]
    with ThreadPoolExecutor(REQUESTS) as pool:
        list(pool.map(lambda pair: copy_file(*pair), pairs))
    write_whole(place / _CHECKSUMS, json.dumps(folder_checksums(content)))


def _is_whole(place: Path) -> bool:
    checksums = place / _CHECKSUMS
    return checksums.is_file() and json.loads(checksums.read_text()) == folder_checksums(place / "content")
