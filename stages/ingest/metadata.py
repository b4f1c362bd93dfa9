"""Reader of LAION-shaped metadata: Parquet or text files on any file system that pyarrow or fsspec knows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from upath import UPath

from model.files import is_hidden, is_utf8, printable_name, visible_files
from stages.contract import StageError
from stages.data.arrow_types import DAMAGED_TEXT, as_text, can_be_text, column_key, plain
from stages.data.schemas import SPELLINGS
from stages.ingest.config import IngestConfig
from stages.ingest.text_tables import SUFFIXES, TextTable
from stages.storage import StorePath

_PARQUET = ".parquet"
_ROWS_AT_ONCE = 65_536
#: Types of our columns that are not scores.
_TYPES = {"url": pa.string(), "caption": pa.string(), "language": pa.string(), "width": pa.float64()}
_TYPES["height"] = pa.float64()
#: Names of columns that hold pictures.
_PICTURES = ("image", "jpg", "jpeg", "png", "webp", "picture", "img")
#: How tools write in text columns that a number is missing, in lower case.
_NO_NUMBER = pa.array(["", "nan", "null", "none", "na", "n/a", "\\n"], pa.large_string())


@dataclass(frozen=True, kw_only=True)
class MetadataFiles:
    """Files of one format on a file system that pyarrow or fsspec knows."""

    system: pafs.FileSystem
    paths: list[str]


def metadata_files(source: str | StorePath) -> MetadataFiles:
    """Find the Parquet files of a file or folder, with subfolders; without any, those in text.

    Args:
        source: The user's path, or URI such as s3://bucket/folder; or a folder of the run.

    Raises:
        StageError: There is no such file or folder, no such file system, or no file of a known format.
    """
    try:
        system, path = _file_system(source)
        found = system.get_file_info(path)
        if found.type == pafs.FileType.File:
            return MetadataFiles(system=system, paths=[path])
        if found.type == pafs.FileType.NotFound:
            raise StageError(f"ingest.metadata: there is no file or folder {source}.")
        files = _table_files(system, path)
    except (OSError, ImportError, ValueError) as error:
        raise StageError(f"ingest.metadata: {source} cannot be listed ({' '.join(str(error).split())}).") from error
    if not files:
        known = ", ".join(f"*{suffix}" for suffix in (_PARQUET, *SUFFIXES))
        raise StageError(
            f"ingest.metadata: the folder {source} holds no {known}; docs/datasets.md says where to get some."
        )
    return MetadataFiles(system=system, paths=files)


def _table_files(system: pafs.FileSystem, folder: str) -> list[str]:
    """The paths of the files of one format below a folder, without hidden ones."""
    if isinstance(system, pafs.LocalFileSystem):  # whose names need not be UTF-8, as pyarrow expects
        paths = [str(file) for file in visible_files(Path(folder))]
    else:
        entries = system.get_file_info(pafs.FileSelector(folder, recursive=True))
        paths = sorted(entry.path for entry in entries if entry.type != pafs.FileType.Directory)
        paths = [path for path in paths if not is_hidden(_below(folder, path))]
    by_suffix = ([path for path in paths if path.endswith(suffix)] for suffix in (_PARQUET, *SUFFIXES))
    return next(filter(None, by_suffix), [])


def _below(folder: str, path: str) -> PurePosixPath:
    """The path without that of the folder; only its name if the file system writes the folder in another way."""
    below, above = PurePosixPath(path), PurePosixPath(folder)
    return below.relative_to(above) if below.is_relative_to(above) else PurePosixPath(below.name)


def _file_system(source: str | StorePath) -> tuple[pafs.FileSystem, str]:
    if isinstance(source, UPath):
        return pafs.PyFileSystem(pafs.FSSpecHandler(source.fs)), source.path
    if isinstance(source, Path) or "://" not in source:
        return pafs.LocalFileSystem(), os.path.realpath(Path(source).expanduser())
    try:
        return pafs.FileSystem.from_uri(source)
    except pa.ArrowInvalid:  # not one of Arrow's own: hf://, http://, memory://
        import fsspec

        system, path = fsspec.core.url_to_fs(source)
        return pafs.PyFileSystem(pafs.FSSpecHandler(system)), path


def count_rows(files: MetadataFiles) -> int:
    """The number of rows, by the footers of Parquet files; raises StageError for a file that is no table."""
    total = 0
    for path in files.paths:
        with _opened(files.system, path) as file:
            total += file.num_rows if isinstance(file, TextTable) else file.metadata.num_rows
    return total


def found_columns(files: MetadataFiles, settings: IngestConfig) -> set[str]:
    """Our names of the columns in which a row may have a value, according to the files' footers.

    Raises:
        StageError: A file is no table, or lacks the URLs or the captions.
    """
    found: set[str] = set()
    for path in files.paths:
        with _opened(files.system, path) as file:
            columns = _columns(path, file.schema_arrow, settings)
            footer = None if isinstance(file, TextTable) else file.metadata
            found |= {ours for ours, theirs in columns.items() if footer is None or not _is_all_null(footer, theirs)}
    return found


def _is_all_null(metadata: Any, column: str) -> bool:
    """Whether a footer says that no row has a value in a column; many footers do not say."""
    indices = [index for index in range(metadata.num_columns) if metadata.schema.column(index).path == column]
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    parts = [(group.num_rows, group.column(index).statistics) for group in groups for index in indices]
    return bool(parts) and all(said is not None and said.has_null_count and said.null_count == n for n, said in parts)


def read_tables(files: MetadataFiles, settings: IngestConfig) -> Iterator[pa.Table]:
    """Read our columns with our names and types, some rows at a time. Missing columns are null.

    Raises:
        StageError: A file is no table, lacks the URLs or the captions, or has a column of a wrong type.
    """
    for path in files.paths:
        yield from _read_file(files.system, path, settings)


def _source(system: pafs.FileSystem, path: str) -> Any:
    return system.open_input_file(path) if is_utf8(path) else Path(path).open("rb")


@contextmanager
def _opened(system: pafs.FileSystem, path: str) -> Iterator[pq.ParquetFile | TextTable]:
    suffix = PurePosixPath(path).suffix.lower()
    try:
        with _source(system, path) as source:
            # A pre-buffer would keep all bytes read.
            yield TextTable(source, path) if suffix in SUFFIXES else pq.ParquetFile(source, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        kind = f"no {suffix} table" if suffix in SUFFIXES else "not a Parquet file"
        raise StageError(f"ingest.metadata: {printable_name(path)} is {kind} ({str(error).splitlines()[0]})") from error


def _read_file(system: pafs.FileSystem, path: str, settings: IngestConfig) -> Iterator[pa.Table]:
    with _opened(system, path) as file:
        columns = _columns(path, file.schema_arrow, settings)
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=list(columns.values())):
            read = {ours: _cast(batch[theirs], ours, path, theirs) for ours, theirs in columns.items()}
            for ours in SPELLINGS:
                read.setdefault(ours, pa.nulls(batch.num_rows, _TYPES.get(ours, pa.float32())))
            yield pa.table(read)


def _columns(path: str, schema: pa.Schema, settings: IngestConfig) -> dict[str, str]:
    """Our column names and the names that the file has for them, without the columns that it lacks."""
    names = schema.names
    lower = {column_key(name): name for name in reversed(names)}
    found = {ours: lower[name] for ours, usual in SPELLINGS.items() for name in reversed(usual) if name in lower}
    for ours in ("url", "caption"):
        given = getattr(settings, f"{ours}_column")
        if given is not None:
            found[ours] = given
        if found.get(ours) not in names:
            lacking = f"the column {given!r}" if given else f"a column {' or '.join(SPELLINGS[ours])}"
            raise StageError(
                f"ingest.metadata: {printable_name(path)} lacks {lacking}; its columns are {', '.join(names)}: "
                f"{_remedy(schema, ours)}"
            )
    return found


def _remedy(schema: pa.Schema, lacking: str) -> str:
    """What to do about a missing column."""
    inside = [field.name for field in schema if pa.types.is_struct(field.type) or pa.types.is_binary(field.type)]
    if lacking == "url" and any(column_key(name) in _PICTURES for name in inside):
        return "its pictures are inside, and are read with --set filter.pictures_folder=... instead"
    return f"name the right one with --set ingest.{lacking}_column=..."


def _cast(column: pa.Array, ours: str, path: str, theirs: str) -> pa.Array:
    wanted = _TYPES.get(ours, pa.float32())
    named = f"ingest.metadata: the column {theirs!r} of {printable_name(path)} must hold"
    if pa.types.is_string(wanted):
        if not can_be_text(column.type):
            raise StageError(f"{named} text, not {column.type}.")
        text = as_text(column)
        if ours == "language":
            text = pc.if_else(pc.match_substring_regex(text, DAMAGED_TEXT), None, text)
        return text.cast(wanted)
    try:
        return (_number_texts(column) if can_be_text(column.type) else plain(column)).cast(wanted, safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise StageError(f"{named} numbers, not {column.type} ({reason}).") from error


def _number_texts(column: pa.Array) -> pa.Array:
    """A text column of numbers, ready to be cast: with nulls where it says that there is none."""
    text = pc.utf8_trim_whitespace(as_text(column))
    return pc.if_else(pc.is_in(pc.utf8_lower(text), _NO_NUMBER), None, text)
