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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.files import decode_with_losses, is_hidden, printable_name, text_damage, visible_files
from model.pictures.decoding import PICTURE_SUFFIXES
from stages.contract import StageError
from stages.data.arrow_types import (
    as_bytes,
    as_text,
    can_be_bytes,
    can_be_text,
    column_key,
    is_list_of_bytes,
    plain,
    plain_type,
)
from stages.data.bulk_files import fetched, unseen
from stages.data.schemas import SPELLINGS
from stages.storage import StorePath, names_below, parquet_source

#: Names of the picture column, when more than one column holds bytes, and suffixes of the members of a tar file.
PICTURE_NAMES = ("image", *(suffix.removeprefix(".") for suffix in PICTURE_SUFFIXES), "picture", "img")
CAPTION_NAMES = (*SPELLINGS["caption"], "txt")
_TEXT_NAMES = {*CAPTION_NAMES, *SPELLINGS["url"], *SPELLINGS["language"], "status", "error_message"}
MAX_MEMBER_BYTES = 100_000_000  # larger members of a tar file are not read
_ROWS_AT_ONCE = 64
_READ_BYTES = 1 << 20  # of a column; a row group may be gigabytes
_BLOCK = tarfile.BLOCKSIZE
_ARROW_FILE = b"ARROW1"  # at its start; a stream has none
_ERRORS = (pa.ArrowException, OSError, EOFError, ValueError, KeyError)  # that damaged files cause


class DamagedFileError(Exception):
    """A file that cannot be read to its end."""


@dataclass(frozen=True, kw_only=True)
class ForeignRow:
    """A row as another tool has written it.

    Attributes:
        origin: The file, and the row's key or number: "00000.tar#000000017".
        picture: The encoded picture, if there is one.
        fields: The other columns, by their names in lower case. Text is valid Unicode; what could not be decoded shows
            in it (`model.files.text_damage`).
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

    files: Sequence[StorePath]
    read: Callable[[StorePath, str], Iterator[ForeignRow]]


def find_layout(folder: StorePath) -> ForeignFolder:
    """Find the layout of a folder.

    Raises:
        StageError: There is no such folder, it has none of the layouts, or its files lack pictures or captions.
    """
    everything = _visible_files(folder)
    for pattern, read in (("*.tar", read_tar), ("*.arrow", read_arrow), ("*.parquet", read_parquet)):
        files = sorted((file for file in everything if file.suffix == pattern[1:] and not _is_cache(file)), key=_parts)
        if files:
            _check_columns(files, pattern)
            return ForeignFolder(files=files, read=partial(_fetch_and_read, read))
    raise StageError(
        f"filter.pictures_folder: {folder} is neither a folder that img2dataset wrote (webdataset or Parquet) nor a "
        "Hugging Face dataset on disk (save_to_disk, or Parquet files): it holds no *.tar, *.arrow or *.parquet."
    )


def _parts(file: StorePath) -> tuple[str, ...]:
    return tuple(file.parts)


def _fetch_and_read(
    read: Callable[[Path, str], Iterator[ForeignRow]], file: StorePath, name: str
) -> Iterator[ForeignRow]:
    with fetched(file) as local:
        if not local.exists():
            raise StageError(unseen("filter.pictures_folder", file))
        yield from read(local, name)


def _visible_files(folder: StorePath) -> list[StorePath]:
    if isinstance(folder, Path):
        if not os.path.isdir(folder):
            raise StageError(f"filter.pictures_folder: there is no folder {printable_name(folder)}.")
        return list(visible_files(folder))
    names = names_below(folder)
    if not names:
        raise StageError(f"filter.pictures_folder: there is no folder {folder}, or it is empty.")
    return [folder / name for name in names if not is_hidden(PurePosixPath(name))]


def _is_cache(file: StorePath) -> bool:
    """Whether `datasets` has left a file beside a dataset: the result of an earlier map, cache-<fingerprint>.arrow."""
    return file.suffix == ".arrow" and file.name.startswith("cache-")


def _check_columns(files: Iterable[StorePath], pattern: str) -> None:
    """Check the columns of the first readable file. If another file lacks a column, its rows are rejected later."""
    if pattern == "*.tar":
        return
    for file in files:
        try:
            schema = pq.read_schema(parquet_source(file)) if pattern == "*.parquet" else _arrow_schema(file)
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
                f"filter.pictures_folder: {printable_name(str(file))} lacks {' and '.join(lacking)}; "
                f"its columns are {columns}."
            )
        return


def picture_column(schema: pa.Schema) -> str | None:
    """The column of encoded pictures: bytes, or Hugging Face's {bytes, path}.

    Without a usual name it is the only column of such a type; byte strings of fixed length, which are mostly hashes,
    and lists of numbers count only if there is no other.
    """
    found = [field for field in schema if can_be_bytes(field.type) and column_key(field.name) not in _TEXT_NAMES]
    named = [field for usual in PICTURE_NAMES for field in found if column_key(field.name) == usual]
    likely = [field for field in found if not _is_rarely_a_picture(plain_type(field.type))]
    if named:
        return named[0].name
    return next((group[0].name for group in (likely, found) if len(group) == 1), None)


def _is_rarely_a_picture(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_binary(kind) or is_list_of_bytes(kind)


def caption_column(schema: pa.Schema) -> str | None:
    """The column of captions."""
    texts = [field.name for field in schema if can_be_text(field.type)]
    return next((name for usual in CAPTION_NAMES for name in texts if column_key(name) == usual), None)


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
    text = _json_text(parts.get("json", b"{}"))
    try:
        fields = {column_key(str(key)): _sound_text(value) for key, value in json.loads(text).items()}
    except (ValueError, AttributeError, RecursionError):
        if text_damage(text):
            fields[CAPTION_NAMES[0]] = text  # in Shift-JIS a quote or a backslash may be half a letter
    if "txt" in parts:
        fields[CAPTION_NAMES[0]] = decode_with_losses(parts["txt"]).rstrip("\r\n")  # replaces a caption in the JSON
    picture = next((parts[suffix] for suffix in PICTURE_NAMES if suffix in parts), None)
    return ForeignRow(origin=origin, picture=picture, fields=fields)


def _json_text(data: bytes) -> str:
    """JSON by its first bytes (RFC 4627), which need no byte order mark."""
    return data.decode(json.detect_encoding(data), "replace")


def _sound_text(value: Any) -> Any:
    """A value of JSON, whose text may hold lone surrogates."""
    return decode_with_losses(value.encode("utf-8", "surrogatepass")) if isinstance(value, str) else value


def read_parquet(file: Path, name: str) -> Iterator[ForeignRow]:
    """The rows of a Parquet file."""
    try:
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=_READ_BYTES) as parquet:
            wanted = _wanted(parquet.schema_arrow)
            batches = (
                batch
                for group in range(parquet.num_row_groups)  # pyarrow cannot join nested dictionaries of row groups
                for batch in parquet.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=wanted)
            )
            yield from _table_rows(batches, parquet.schema_arrow, name)
    except _ERRORS as error:
        raise DamagedFileError(_words(error)) from error


def read_arrow(file: Path, name: str) -> Iterator[ForeignRow]:
    """The rows of an Arrow stream or an Arrow file. It is memory-mapped."""
    try:
        with pa.memory_map(str(file)) as source:
            schema, batches = _open_arrow(source)
            wanted = _wanted(schema)
            pieces = (
                batch.slice(start, _ROWS_AT_ONCE).select(wanted)
                for batch in batches
                for start in range(0, batch.num_rows, _ROWS_AT_ONCE)
            )
            yield from _table_rows(pieces, schema, name)
    except _ERRORS as error:
        raise DamagedFileError(_words(error)) from error


def _open_arrow(source: pa.NativeFile) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Schema and batches of a stream, as `datasets` writes it, or of a file with random access, as Polars does."""
    magic = source.read(len(_ARROW_FILE))
    source.seek(0)
    if magic != _ARROW_FILE:
        stream = pa.ipc.open_stream(source)
        return stream.schema, iter(stream)
    file = pa.ipc.open_file(source)
    return file.schema, map(file.get_batch, range(file.num_record_batches))


def _arrow_schema(file: StorePath) -> pa.Schema:
    if isinstance(file, Path):
        with pa.memory_map(str(file)) as source:
            return _open_arrow(source)[0]
    with file.open("rb") as remote:
        return _open_arrow(pa.PythonFile(remote))[0]


def _wanted(schema: pa.Schema) -> list[str]:
    """The columns to read. Columns that another tool has added are ignored."""
    usual = {*CAPTION_NAMES, *(name for names in SPELLINGS.values() for name in names)}
    usual |= {"original_width", "original_height", "status", "error_message"}
    return [name for name in schema.names if column_key(name) in usual or name == picture_column(schema)]


def _table_rows(batches: Iterable[pa.RecordBatch], schema: pa.Schema, name: str) -> Iterator[ForeignRow]:
    pictures, number = picture_column(schema), 0
    for batch in batches:
        columns = {column_key(column): _values(batch[column]) for column in batch.schema.names if column != pictures}
        encoded = [None] * batch.num_rows if pictures is None else as_bytes(batch[pictures]).to_pylist()
        for row in range(batch.num_rows):
            fields = {column: values[row] for column, values in columns.items()}
            yield ForeignRow(origin=f"{name}#{number}", picture=encoded[row], fields=fields)
            number += 1


def _values(column: pa.Array) -> list[Any]:
    return (as_text(column) if can_be_text(column.type) else plain(column)).to_pylist()


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
