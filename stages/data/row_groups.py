"""The row groups of a dataset, one at a time: from files on the disk, or from an object store through a local cache.

A request to a store takes as long as reading megabytes, and a training reads pictures in random order, again in each
epoch. So a row group that was read from a store stays on this machine's disk, for all its processes, as an Arrow file:
reading one picture of it touches that picture only. Each file of the dataset has an index of its own in the cache. The
cache takes what the disk has to spare: when less than a fifth is free, the groups that were not used for longest go.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from stages.cache import cache_folder
from stages.storage import REQUESTS, StorePath, parquet_source
from stages.storage_errors import store_errors_as_stage_errors

#: Columns that lie this near each other in a file are read together, bytes.
_GAP = 2**16
#: Of the disk, which the cache leaves free.
_FREE_SHARE = 0.2
#: Of the cached groups, which are deleted together.
_DELETED_SHARE = 0.1


class RowGroups(Protocol):
    """Two columns of a dataset: the ids and their values."""

    @property
    def sizes(self) -> list[int]:
        """The number of rows of each group."""

    def ids(self) -> Iterator[list[str]]:
        """The ids in the order of the dataset, some at a time."""

    def read(self, group: int) -> pa.Table:
        """Both columns of a group."""


def open_row_groups(files: Sequence[StorePath], id_column: str, column: str) -> RowGroups:
    """The row groups of a dataset's files, in order."""
    if all(isinstance(file, Path) for file in files):
        return _LocalRowGroups(files, id_column, column)
    return _StoredRowGroups([file for file in files if isinstance(file, UPath)], id_column, column)


class _LocalRowGroups:
    def __init__(self, files: Sequence[StorePath], id_column: str, column: str) -> None:
        self._id_column, self._columns = id_column, [id_column, column]
        self._files = [pq.ParquetFile(file, memory_map=True, page_checksum_verification=True) for file in files]
        self._places = _places([file.metadata for file in self._files])

    @cached_property
    def sizes(self) -> list[int]:
        return [self._files[number].metadata.row_group(group).num_rows for number, group in self._places]

    def ids(self) -> Iterator[list[str]]:
        return (file.read(columns=[self._id_column]).column(0).to_pylist() for file in self._files)

    def read(self, group: int) -> pa.Table:
        number, own = self._places[group]
        return self._files[number].read_row_group(own, columns=self._columns)


class _StoredRowGroups:
    def __init__(self, files: Sequence[UPath], id_column: str, column: str) -> None:
        self._files, self._id_column, self._columns = files, id_column, [id_column, column]
        folder = files[0].parent
        with store_errors_as_stage_errors(folder), ThreadPoolExecutor(REQUESTS) as pool:
            found = folder.fs.find(folder.path, detail=True)
            self._caches = [_FileCache(file, found[file.path]) for file in files]
            self._metadata = list(pool.map(lambda cache: cache.metadata, self._caches))
        self._places = _places(self._metadata)

    @cached_property
    def sizes(self) -> list[int]:
        return [self._metadata[number].row_group(group).num_rows for number, group in self._places]

    def ids(self) -> Iterator[list[str]]:
        with store_errors_as_stage_errors(self._files[0].parent), ThreadPoolExecutor(REQUESTS) as pool:
            tables = pool.map(lambda cache: cache.table("ids", None, [self._id_column]), self._caches)
            yield from (table.column(0).to_pylist() for table in tables)

    def read(self, group: int) -> pa.Table:
        number, own = self._places[group]
        with store_errors_as_stage_errors(self._files[number]):
            return self._caches[number].table(f"{self._columns[1]}-{own:05d}", [own], self._columns)


def _places(files: Sequence[pq.FileMetaData]) -> list[tuple[int, int]]:
    """For each row group of a dataset its file, and its number there."""
    return [(number, group) for number, file in enumerate(files) for group in range(file.num_row_groups)]


class _FileCache:
    """What this machine has read of a file in a store. Another file of the same name has a cache of its own."""

    def __init__(self, file: UPath, info: Mapping[str, Any]) -> None:
        self._file = file
        version = {key: str(info.get(key)) for key in ("size", "ETag", "md5Hash", "etag")}
        key = hashlib.sha256(json.dumps([str(file), version], sort_keys=True).encode()).hexdigest()[:24]
        self._folder = cache_folder() / "row_groups" / key
        self._folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def metadata(self) -> pq.FileMetaData:
        footer = self._folder / "footer"
        if not footer.exists():
            pq.read_metadata(parquet_source(self._file)).write_metadata_file(temporary := _temporary(footer))
            temporary.rename(footer)
        return pq.read_metadata(footer)

    def table(self, name: str, groups: Sequence[int] | None, columns: Sequence[str]) -> pa.Table:
        """Columns of some row groups (all: None), from the cache or the store."""
        place = self._folder / f"{name}.arrow"
        try:
            os.utime(place)  # used now
            with pa.memory_map(str(place)) as source:
                return pa.ipc.open_file(source).read_all()
        except FileNotFoundError:
            table = read_row_groups(self._file, self.metadata, groups, columns)
        with suppress(OSError):  # without room for it, it is read from the store each time
            self._keep(table, place)
        return table

    def _keep(self, table: pa.Table, place: Path) -> None:
        make_room(self._folder.parent, table.nbytes)
        temporary = _temporary(place)
        try:
            with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
                file.write_table(table)
            temporary.rename(place)
        finally:
            temporary.unlink(missing_ok=True)


def _temporary(file: Path) -> Path:
    return file.with_name(f"{file.name}.{uuid.uuid4().hex[:12]}")


def make_room(folder: Path, size: int) -> None:
    """Delete the groups that were not used for longest until the disk of `folder` has room for `size` bytes more."""
    disk = shutil.disk_usage(folder)
    if disk.free - size >= _FREE_SHARE * disk.total:
        return
    groups = sorted(folder.glob("*/*-*.arrow"), key=_last_used)
    for file in groups[: 1 + int(_DELETED_SHARE * len(groups))]:
        file.unlink(missing_ok=True)


def _last_used(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:  # another process has deleted it
        return 0.0


def read_row_groups(
    file: UPath, metadata: pq.FileMetaData, groups: Sequence[int] | None, columns: Sequence[str]
) -> pa.Table:
    """Columns of some row groups (all: None) of a file in a store, by requests side by side for their bytes alone."""
    numbers = range(metadata.num_row_groups) if groups is None else groups
    ranges = _ranges(metadata, numbers, columns)
    starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
    parts = file.fs.cat_ranges([file.path] * len(ranges), starts, ends, on_error="raise")
    source = pa.PythonFile(_Parts(dict(zip(starts, parts, strict=True))), "r")
    parquet = pq.ParquetFile(source, metadata=metadata, page_checksum_verification=True)
    return parquet.read_row_groups(list(numbers), columns=list(columns), use_threads=False)


def _ranges(metadata: pq.FileMetaData, groups: Sequence[int], columns: Sequence[str]) -> list[tuple[int, int]]:
    """Where the columns' values lie in the file: first byte and end, in order, near ones together."""
    found = []
    for group in map(metadata.row_group, groups):
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema.partition(".")[0] in columns:
                start = chunk.dictionary_page_offset or chunk.data_page_offset
                found.append((start, start + chunk.total_compressed_size))
    joined: list[tuple[int, int]] = []
    for start, end in sorted(found):
        if joined and start - joined[-1][1] <= _GAP:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


class _Parts:
    """A file of which some parts are in memory, as pyarrow reads one."""

    closed = False

    def __init__(self, parts: dict[int, bytes]) -> None:
        self._parts = parts
        self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        end = max((start + len(part) for start, part in self._parts.items()), default=0)
        self._position = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: end}[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        start = max(start for start in self._parts if start <= self._position)
        first = self._position - start
        data = self._parts[start][first : first + size]
        self._position += len(data)
        return data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> Any: ...
