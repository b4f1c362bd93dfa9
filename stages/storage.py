"""Files of a run folder, which lies on a disk or in an object store.

A folder on a disk is a `pathlib.Path`, one in an object store a `upath.UPath`: both have pathlib's methods, so most
code need not know which it has. This module has what differs: writing whole, copying between disk and store,
checksums, Parquet. An object store has no rename and no append, and a folder exists as soon as it has a file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias
from urllib.parse import unquote, urlsplit

from fsspec import get_filesystem_class
from upath import UPath

from model.checksums import file_checksum

StorePath: TypeAlias = Path | UPath

#: Requests to a store at the same time.
REQUESTS = 16
#: Waits between the attempts double, up to 20 seconds: a store that asks to slow down gets several minutes.
_ATTEMPTS = 10


class StorageError(Exception):
    """A place that cannot be read or written. The message is one sentence: what is wrong, where, and what to do."""


def store_path(location: str) -> StorePath:
    """The folder or file that a path or a URI names: `runs/micro`, `file:///data/run`, `s3://bucket/run`.

    Raises:
        StorageError: The URI has a scheme that no installed package reads, or names no bucket.
    """
    scheme, separator, rest = location.partition("://")
    if not separator:
        return Path(location)
    if scheme == "file":
        return Path(unquote(urlsplit(location).path))
    if "/" not in rest.strip("/"):
        raise StorageError(f"{location} is no folder of a bucket: give {scheme}://bucket/folder.")
    try:
        get_filesystem_class(scheme)
        path = UPath(location.rstrip("/"), **_options(scheme))
        if scheme == "hdfs":
            path.fs  # noqa: B018 (it loads Java's library, which may be missing)
        return path
    except (ImportError, ValueError, OSError) as error:
        raise StorageError(f"{location} cannot be used: {str(error).splitlines()[0]}.") from error


def _options(scheme: str) -> dict[str, Any]:
    # Other processes write too, so a listing must not be remembered.
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme in ("s3", "s3a"):
        attempts = int(os.environ.get("AWS_MAX_ATTEMPTS", _ATTEMPTS))
        options["config_kwargs"] = {"retries": {"mode": "standard", "max_attempts": attempts}}
    return options


def is_remote(path: StorePath) -> bool:
    """Whether a path lies in an object store."""
    return not isinstance(path, Path)


def absolute(path: StorePath) -> StorePath:
    """The path as processes with another working directory need it."""
    return path.resolve() if isinstance(path, Path) else path


def name_below(path: StorePath, folder: StorePath) -> str:
    """The path of what lies below a folder, relative to it."""
    if isinstance(path, Path) and isinstance(folder, Path):
        return str(path.relative_to(folder))
    return str(path).removeprefix(f"{folder}/")


# --- writing -------------------------------------------------------------------------------------------------------


def write_whole(path: StorePath, content: bytes | str) -> None:
    """Write a small file so that a reader finds the former content or the new one, and never a part."""
    data = content.encode() if isinstance(content, str) else content
    if not isinstance(path, Path):
        path.fs.pipe_file(path.path, data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.partial")
    with scratch.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    scratch.rename(path)


@contextmanager
def open_output(path: StorePath) -> Iterator[BinaryIO]:
    """Open a file for writing. In a store it exists when the block has ended without an error, and not before."""
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            yield file
        return
    remote = path.fs.open(path.path, "wb")
    try:
        yield remote
    except BaseException:
        remote.discard()
        remote.closed = True  # closing would complete the upload
        raise
    remote.close()


@contextmanager
def open_whole(path: StorePath) -> Iterator[BinaryIO]:
    """Open a file for writing that appears, or replaces an earlier one, when the block has ended without an error.

    On a disk it is written beside its folder, so that what a killed process leaves is no file of a dataset.
    """
    if not isinstance(path, Path):
        with open_output(path) as remote:
            yield remote
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent.with_name(f"{path.parent.name}-{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        with unfinished.open("wb") as file:
            yield file
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def local_folder(target: StorePath) -> Iterator[Path]:
    """A folder on this machine's disk for libraries that write to one; its files are at `target` after the block."""
    if isinstance(target, Path):
        target.mkdir(parents=True, exist_ok=True)
        yield target
        return
    with tempfile.TemporaryDirectory(prefix="realword-") as folder:
        yield Path(folder)
        upload(Path(folder), target)


def upload(source: Path, target: StorePath) -> None:
    """Copy a file, or all files below a folder, to `target`."""
    if source.is_file():
        copy_file(source, target)
    else:
        copy_folder(source, target)


def copy_file(source: StorePath, target: StorePath) -> None:
    """Copy one file between disk and store; inside a store without moving its bytes through this machine."""
    if isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, Path):
            shutil.copyfile(source, target)
        else:
            source.fs.get_file(source.path, str(target))
    elif isinstance(source, Path):
        target.fs.put_file(str(source), target.path)
    else:
        source.fs.cp_file(source.path, target.path)


def move_folder(source: StorePath, target: StorePath) -> None:
    """Rename a folder; in a store its files are copied there, and the former ones stay until someone removes them."""
    if isinstance(source, Path) and isinstance(target, Path):
        source.rename(target)
        return
    copy_folder(source, target)


def copy_folder(source: StorePath, target: StorePath, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Copy the files below a folder whose path relative to it is `wanted`, some at the same time."""
    if isinstance(source, Path):
        names = [file.relative_to(source).as_posix() for file in sorted(source.rglob("*")) if file.is_file()]
    else:
        names = list(names_below(source))
    with ThreadPoolExecutor(REQUESTS) as pool:
        list(pool.map(lambda name: copy_file(source / name, target / name), filter(wanted, names)))


def remove(path: StorePath) -> None:
    """Delete a file, or a folder with all below it, if it is there.

    Raises:
        ValueError: The path is a root or a whole bucket.
    """
    if isinstance(path, Path):
        if path.resolve() == path.resolve().parent:
            raise ValueError(f"{path} is a root folder")
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        return
    if "/" not in path.path.strip("/"):
        raise ValueError(f"{path} is a whole bucket")
    names = path.fs.find(path.path)
    if names:
        path.fs.rm(names)


# --- reading -------------------------------------------------------------------------------------------------------


def read_whole(file: StorePath) -> bytes:
    """The content of a small file, also of one that is being replaced; from a store by a single request."""
    return file.read_bytes() if isinstance(file, Path) else bytes(file.fs.cat_file(file.path))


def read_files(files: Sequence[StorePath]) -> list[bytes]:
    """The contents of some small files, in their order; from a store with requests side by side."""
    with ThreadPoolExecutor(REQUESTS) as pool:
        return list(pool.map(read_whole, files))


def parquet_source(path: StorePath) -> Any:
    """What pyarrow.parquet reads a file from: a path, or a file of the store without a cache of its own.

    Parquet knows which ranges it needs; a cache that reads ahead would fetch what nobody asked for.
    """
    return path if isinstance(path, Path) else path.fs.open(path.path, "rb", cache_type="none")


def folder_bytes(folder: StorePath) -> int:
    """The size of all files below a folder together."""
    if isinstance(folder, Path):
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return sum(int(info["size"]) for info in names_below(folder).values())


def file_records(folder: StorePath) -> dict[str, dict[str, Any]]:
    """The size and a checksum of each file below a folder, by its path relative to it.

    The checksum is the SHA-256 of a file on a disk, and what the store gives in its listing for an object: S3's ETag,
    the MD5 of Google and Azure. So nothing is read from a store.
    """
    if isinstance(folder, Path):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): file_record(path) for path in files}
    return {name: _object_record(folder, info) for name, info in names_below(folder).items()}


def names_below(folder: UPath) -> dict[str, Mapping[str, Any]]:
    """What the store's listing says of each object below a folder, by its path relative to it, in order."""
    found: Mapping[str, Mapping[str, Any]] = folder.fs.find(folder.path, detail=True)
    prefix = folder.path.rstrip("/") + "/"
    return {
        name.removeprefix(prefix): info
        for name, info in sorted(found.items())
        if not name.endswith("/")  # what a store's console makes for an empty folder
    }


def file_record(path: Path) -> dict[str, Any]:
    """The size and the SHA-256 of a file on a disk."""
    return {"bytes": path.stat().st_size, "sha256": file_checksum(path)}


def _object_record(folder: UPath, info: Mapping[str, Any]) -> dict[str, Any]:
    settings = info.get("content_settings") or {}  # Azure's
    given = info.get("ETag") or info.get("md5Hash") or info.get("etag") or settings.get("content_md5")
    checksum = str(given).strip('"') if given else hashlib.sha256(folder.fs.cat_file(info["name"])).hexdigest()
    return {"bytes": int(info["size"]), "etag": checksum}


def listed_time(folder: UPath, info: Mapping[str, Any]) -> float:
    """When an object was written, in seconds since 1970, from what the listing of a folder says of it.

    S3, Google and Azure each have a name for it; of another store it is asked for.
    """
    time = next((info[key] for key in ("LastModified", "mtime", "last_modified") if info.get(key)), None)
    return float((time if isinstance(time, datetime) else folder.fs.modified(info["name"])).timestamp())


def modified(path: StorePath) -> float:
    """When a file was written, in seconds since 1970 by the clock of its disk or store."""
    return path.stat().st_mtime if isinstance(path, Path) else float(path.fs.modified(path.path).timestamp())
