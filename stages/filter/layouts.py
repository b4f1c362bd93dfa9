"""Readers of folders with captioned pictures that other tools write. Nothing is unpickled or executed.

- webdataset: tar files with `key.jpg` (or png, webp, gif), `key.txt` and `key.json`, as img2dataset writes them;
- Parquet: from img2dataset, or from a Hugging Face dataset with an image column {bytes, path};
- Arrow streams: from `datasets.Dataset.save_to_disk`, with one or more splits.

The first of these that a folder holds determines its layout: img2dataset also writes Parquet files without pictures
beside its tar files.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.files import is_hidden, printable_name, visible_files
from model.pictures.decoding import PICTURE_SUFFIXES
from stages.contract import StageError
from stages.data.schemas import SPELLINGS

#: Names of the picture column, when more than one column holds bytes, and suffixes of the members of a tar file.
PICTURE_NAMES = ("image", *(suffix.removeprefix(".") for suffix in PICTURE_SUFFIXES), "picture", "img")
CAPTION_NAMES = (*SPELLINGS["caption"], "txt")
MAX_MEMBER_BYTES = 100_000_000  # larger members of a tar file are not read
_ROWS_AT_ONCE = 64
_READ_BYTES = 1 << 20  # of a column; a row group may be gigabytes
_BLOCK = tarfile.BLOCKSIZE
_ERRORS = (pa.ArrowException, OSError, EOFError, ValueError, KeyError)  # that damaged files cause


class DamagedFileError(Exception):
    """A file that cannot be read to its end."""


@dataclass(frozen=True, kw_only=True)
class ForeignRow:
    """A row as another tool has written it.

    Attributes:
        origin: The file, and the row's key or number: "00000.tar#000000017".
        picture: The encoded picture, if there is one.
        fields: The other columns, by their names in lower case. Text is valid Unicode.
    """

    origin: str
    picture: bytes | None
    fields: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ForeignFolder:
    """The files of a folder, and their reader.

    Attributes:
        files: Sorted paths.
        read: Yields the rows of a file, given its path and its name in `origin`; raises DamagedFileError.
    """

    files: list[Path]
    read: Callable[[Path, str], Iterator[ForeignRow]]


def find_layout(folder: Path) -> ForeignFolder:
    """Find the layout of a folder.

    Raises:
        StageError: There is no such folder, it has none of the layouts, or its files lack pictures or captions.
    """
    if not os.path.isdir(folder):
        raise StageError(f"filter.pictures_folder: there is no folder {printable_name(folder)}.")
    everything = list(visible_files(folder))
    for pattern, read in (("*.tar", read_tar), ("*.arrow", read_arrow), ("*.parquet", read_parquet)):
        files = sorted(file for file in everything if file.match(pattern) and not _is_cache(file))
        if files:
            _check_columns(files, pattern)
            return ForeignFolder(files=files, read=read)
    raise StageError(
        f"filter.pictures_folder: {folder} is neither a folder that img2dataset wrote (webdataset or Parquet) nor a "
        "Hugging Face dataset on disk (save_to_disk, or Parquet files): it holds no *.tar, *.arrow or *.parquet."
    )


def _is_cache(file: Path) -> bool:
    """Whether `datasets` has left a file beside a dataset: the result of an earlier map, cache-<fingerprint>.arrow."""
    return file.suffix == ".arrow" and file.name.startswith("cache-")


def _check_columns(files: Iterable[Path], pattern: str) -> None:
    """Check the columns of the first readable file. If another file lacks a column, its rows are rejected later."""
    if pattern == "*.tar":
        return
    for file in files:
        try:
            schema = pq.read_schema(file) if pattern == "*.parquet" else _arrow_schema(file)
        except _ERRORS:
            continue
        lacking = []
        if picture_column(schema) is None:
            lacking.append("a picture's bytes (a column image, jpg, ...)")
        if caption_column(schema) is None:
            lacking.append(f"a caption (a text column {' or '.join(CAPTION_NAMES)})")
        if lacking:
            columns = ", ".join(schema.names)
            raise StageError(
                f"filter.pictures_folder: {printable_name(file)} lacks {' and '.join(lacking)}; "
                f"its columns are {columns}."
            )
        return


def picture_column(schema: pa.Schema) -> str | None:
    """The column of encoded pictures: bytes, or Hugging Face's {bytes, path}."""
    found = [field.name for field in schema if _holds_bytes(field.type)]
    named = [name for usual in PICTURE_NAMES for name in found if name.lower() == usual]
    return named[0] if named else (found[0] if len(found) == 1 else None)


def caption_column(schema: pa.Schema) -> str | None:
    """The column of captions."""
    return next(
        (field.name for usual in CAPTION_NAMES for field in schema if field.name.lower() == usual and _is_text(field)),
        None,
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(field: pa.Field) -> bool:
    return pa.types.is_string(field.type) or pa.types.is_large_string(field.type)


def read_tar(file: Path, name: str) -> Iterator[ForeignRow]:
    """The rows of a webdataset: consecutive members whose names agree up to the first dot after the folder."""
    try:
        with tarfile.open(file, "r:", encoding="utf-8", errors="surrogateescape") as archive:
            key, parts = "", dict[str, bytes]()
            for member_key, suffix, data in _tar_members(archive):
                if member_key != key:
                    if parts:
                        yield _tar_row(f"{name}#{printable_name(key)}", parts)
                    key, parts = member_key, {}
                parts.setdefault(suffix, data)
            if parts:
                yield _tar_row(f"{name}#{printable_name(key)}", parts)
            end = archive.offset
    except (tarfile.TarError, *_ERRORS) as error:
        raise DamagedFileError(_words(error)) from error
    with file.open("rb") as raw:  # tarfile treats everything that is not a header as the end
        raw.seek(end)
        if raw.read(_BLOCK) != b"\0" * _BLOCK:
            raise DamagedFileError(f"the archive breaks off at byte {end}")


def _tar_members(archive: tarfile.TarFile) -> Iterator[tuple[str, str, bytes]]:
    """Key, suffix and content of the regular files without hidden ones; that of one that is too large is empty."""
    for member in archive:
        folder, slash, base = member.name.rpartition("/")
        stem, dot, suffix = base.partition(".")
        if member.isreg() and dot and not is_hidden(PurePosixPath(member.name)):
            stream = archive.extractfile(member)
            is_read = stream is not None and member.size <= MAX_MEMBER_BYTES
            yield folder + slash + stem, suffix.lower(), stream.read() if stream is not None and is_read else b""


def _tar_row(origin: str, parts: Mapping[str, bytes]) -> ForeignRow:
    fields: dict[str, Any] = {}
    try:
        content = json.loads(parts.get("json", b"{}"))
        fields = {str(key).lower(): _unicode(value) for key, value in content.items()}
    except (ValueError, AttributeError, RecursionError):
        pass  # the picture and the caption do not depend on it
    if "txt" in parts:
        fields[CAPTION_NAMES[0]] = _unicode(parts["txt"])  # replaces a caption in the JSON
    picture = next((parts[suffix] for suffix in PICTURE_NAMES if suffix in parts), None)
    return ForeignRow(origin=origin, picture=picture, fields=fields)


def read_parquet(file: Path, name: str) -> Iterator[ForeignRow]:
    """The rows of a Parquet file."""
    try:
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=_READ_BYTES) as parquet:
            wanted = _wanted(parquet.schema_arrow)
            yield from _table_rows(parquet.iter_batches(_ROWS_AT_ONCE, columns=wanted), parquet.schema_arrow, name)
    except _ERRORS as error:
        raise DamagedFileError(_words(error)) from error


def read_arrow(file: Path, name: str) -> Iterator[ForeignRow]:
    """The rows of an Arrow stream. The file is memory-mapped."""
    try:
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
            wanted = _wanted(stream.schema)
            pieces = (
                batch.slice(start, _ROWS_AT_ONCE).select(wanted)
                for batch in stream
                for start in range(0, batch.num_rows, _ROWS_AT_ONCE)
            )
            yield from _table_rows(pieces, stream.schema, name)
    except _ERRORS as error:
        raise DamagedFileError(_words(error)) from error


def _arrow_schema(file: Path) -> pa.Schema:
    with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
        return stream.schema


def _wanted(schema: pa.Schema) -> list[str]:
    """The columns to read. Columns that another tool has added are ignored."""
    usual = {*CAPTION_NAMES, *(name for names in SPELLINGS.values() for name in names)}
    usual |= {"original_width", "original_height", "status", "error_message"}
    return [name for name in schema.names if name.lower() in usual or name == picture_column(schema)]


def _table_rows(batches: Iterable[pa.RecordBatch], schema: pa.Schema, name: str) -> Iterator[ForeignRow]:
    pictures, number = picture_column(schema), 0
    for batch in batches:
        columns = {column: _values(batch[column]) for column in batch.schema.names}
        for row in range(batch.num_rows):
            fields = {column.lower(): columns[column][row] for column in columns if column != pictures}
            picture = None if pictures is None else columns[pictures][row]
            yield ForeignRow(origin=f"{name}#{number}", picture=picture, fields=fields)
            number += 1


def _values(column: pa.Array) -> list[Any]:
    """Python values. Invalid UTF-8, for which neither Parquet nor Arrow checks, is replaced."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return [_unicode(value) for value in column.cast(pa.large_binary()).to_pylist()]
    if pa.types.is_struct(column.type):  # Hugging Face's image; one that has only a path is not read
        return pc.struct_field(column, "bytes").to_pylist()
    return column.to_pylist()


def _unicode(value: Any) -> Any:
    """Text that can be stored; invalid UTF-8 and the lone surrogates of JSON are replaced."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
