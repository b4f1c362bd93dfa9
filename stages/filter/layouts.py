"""Folders of captioned pictures that other tools write, read row by row. Nothing is unpickled or executed.

- webdataset: tar files with `key.jpg` (or png, webp, gif), `key.txt` and `key.json`, as img2dataset writes them;
- Parquet: img2dataset's, or a Hugging Face dataset's with an image column {bytes, path};
- Arrow streams: what `datasets.Dataset.save_to_disk` writes, also with several splits.

A folder is what the first of these is that it holds: beside img2dataset's tar files lie Parquet files without pictures.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.pictures.decoding import PICTURE_SUFFIXES
from stages.contract import StageError
from stages.data.schemas import SPELLINGS

#: Names of a picture's column, when more than one holds bytes, and of a tar file's members.
PICTURE_NAMES = ("image", *(suffix.removeprefix(".") for suffix in PICTURE_SUFFIXES), "picture", "img")
CAPTION_NAMES = (*SPELLINGS["caption"], "txt")
MAX_MEMBER_BYTES = 100_000_000  # of a tar file; more is not read
_ROWS_AT_ONCE = 64
_READ_BYTES = 1 << 20  # of a column; a row group may be gigabytes
_BLOCK = tarfile.BLOCKSIZE
_ERRORS = (pa.ArrowException, OSError, EOFError, ValueError, KeyError)  # of files that are damaged


class DamagedFileError(Exception):
    """A file that cannot be read, or not to its end; the message says how."""


@dataclass(frozen=True, kw_only=True)
class ForeignRow:
    """A row as another tool has written it.

    Attributes:
        origin: File and place in it: "00000.tar#000000017".
        picture: The encoded picture; None when there is none.
        fields: The other columns, by their names in lower case; text is Unicode.
    """

    origin: str
    picture: bytes | None
    fields: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ForeignFolder:
    """A folder's files, in the order of their names, and what reads one of them.

    Attributes:
        files: Paths.
        read: Yields a file's rows, given its path and the name for it in `origin`; raises DamagedFileError.
    """

    files: list[Path]
    read: Callable[[Path, str], Iterator[ForeignRow]]


def find_layout(folder: Path) -> ForeignFolder:
    """The folder in the layout that it has.

    Raises:
        StageError: There is no folder, it has none of the layouts, or its files have no picture and caption.
    """
    if not folder.is_dir():
        raise StageError(f"filter.pictures_folder: there is no folder {folder}.")
    for pattern, read in (("*.tar", read_tar), ("*.arrow", read_arrow), ("*.parquet", read_parquet)):
        # `datasets` leaves the outcome of earlier maps beside a dataset, as cache-<fingerprint>.arrow.
        others = (".", "_", "cache-") if pattern == "*.arrow" else (".", "_")
        files = sorted(file for file in folder.rglob(pattern) if not file.name.startswith(others))
        if files:
            _check_columns(files, pattern)
            return ForeignFolder(files=files, read=read)
    raise StageError(
        f"filter.pictures_folder: {folder} is neither a folder that img2dataset wrote (webdataset or Parquet) nor a "
        "Hugging Face dataset on disk (save_to_disk, or Parquet files): it holds no *.tar, *.arrow or *.parquet."
    )


def _check_columns(files: Iterable[Path], pattern: str) -> None:
    """Look at the first file that can be opened; columns that another one lacks are its rows' to answer for."""
    if pattern == "*.tar":
        return
    for file in files:
        try:
            schema = pq.read_schema(file) if pattern == "*.parquet" else _arrow_schema(file)
        except _ERRORS:
            continue
        lacking = [
            f"{what} ({names})"
            for what, names, found in (
                ("a picture's bytes", "a column image, jpg, ...", picture_column(schema)),
                ("a caption", "a text column " + " or ".join(CAPTION_NAMES), caption_column(schema)),
            )
            if found is None
        ]
        if lacking:
            raise StageError(
                f"filter.pictures_folder: {file} lacks {' and '.join(lacking)}; its columns are "
                f"{', '.join(schema.names)}."
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
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_bytes(kind.field(place).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(field: pa.Field) -> bool:
    return pa.types.is_string(field.type) or pa.types.is_large_string(field.type)


def read_tar(file: Path, name: str) -> Iterator[ForeignRow]:
    """The rows of a webdataset: consecutive members whose names agree up to the first dot behind the folder."""
    try:
        with tarfile.open(file, "r:", encoding="utf-8", errors="replace") as archive:
            key, parts = "", dict[str, bytes]()
            for member in archive:
                folder, slash, base = member.name.rpartition("/")
                stem, dot, ending = base.partition(".")
                if not member.isreg() or not dot:
                    continue
                if folder + slash + stem != key:
                    if parts:
                        yield _tar_row(f"{name}#{key}", parts)
                    key, parts = folder + slash + stem, {}
                stream = archive.extractfile(member)
                whole = stream is not None and member.size <= MAX_MEMBER_BYTES
                parts.setdefault(ending.lower(), stream.read() if stream is not None and whole else b"")
            if parts:
                yield _tar_row(f"{name}#{key}", parts)
            end = archive.offset
    except (tarfile.TarError, *_ERRORS) as error:
        raise DamagedFileError(_words(error)) from error
    with file.open("rb") as raw:  # tarfile takes what is no header for the end
        raw.seek(end)
        if raw.read(_BLOCK) != b"\0" * _BLOCK:
            raise DamagedFileError(f"the archive breaks off at byte {end}")


def _tar_row(origin: str, parts: Mapping[str, bytes]) -> ForeignRow:
    fields: dict[str, Any] = {}
    try:
        told = json.loads(parts.get("json", b"{}"))
        fields = {str(key).lower(): _unicode(value) for key, value in told.items()}
    except (ValueError, AttributeError, RecursionError):
        pass  # the picture and the caption do not depend on it
    if "txt" in parts:
        fields[CAPTION_NAMES[0]] = _unicode(parts["txt"])  # before what the JSON has for a caption
    picture = next((parts[ending] for ending in PICTURE_NAMES if ending in parts), None)
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
    """The rows of an Arrow stream, which is mapped, not read into memory."""
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
    """The columns to read: of what another tool has added, none can be of use or do harm."""
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
    """Python's values; text whose bytes are no UTF-8, which neither Parquet nor Arrow checks, is mended."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return [_unicode(value) for value in column.cast(pa.large_binary()).to_pylist()]
    if pa.types.is_struct(column.type):  # Hugging Face's image; what only its path leads to is not fetched
        return pc.struct_field(column, "bytes").to_pylist()
    return column.to_pylist()


def _unicode(value: Any) -> Any:
    """Text that can be stored: also JSON's lone surrogates are mended."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
