"""Readers of Parquet and Arrow files with pictures, or with the paths of pictures beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

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
from stages.data.schemas import SPELLINGS
from stages.filter.foreign_rows import (
    CAPTION_NAMES,
    ERRORS,
    PATH_NAMES,
    PICTURE_NAMES,
    USUAL,
    Columns,
    DamagedFileError,
    ForeignRow,
    PictureFiles,
    words_of,
)
from stages.storage import StorePath, parquet_source

_TEXT_NAMES = {*CAPTION_NAMES, *SPELLINGS["url"], *SPELLINGS["language"], "status", "error_message"}
_ROWS_AT_ONCE = 64
_READ_BYTES = 1 << 20  # of a column; a row group may be gigabytes
_ARROW_FILE = b"ARROW1"  # at its start; a stream has none


def picture_column(schema: pa.Schema, columns: Columns = USUAL) -> str | None:
    """The column of encoded pictures: bytes, or Hugging Face's {bytes, path}.

    Without a usual name it is the only column of such a type; byte strings of fixed length, which are mostly hashes,
    and lists of numbers count only if there is no other.
    """
    if columns.picture is not None:
        fields = {field.name: field.type for field in schema if can_be_bytes(field.type)}
        return columns.picture if columns.picture in fields else None
    found = [field for field in schema if can_be_bytes(field.type) and column_key(field.name) not in _TEXT_NAMES]
    named = [field for usual in PICTURE_NAMES for field in found if column_key(field.name) == usual]
    likely = [field for field in found if not _is_rarely_a_picture(plain_type(field.type))]
    if named:
        return named[0].name
    return next((group[0].name for group in (likely, found) if len(group) == 1), None)


def path_column(schema: pa.Schema, columns: Columns = USUAL) -> str | None:
    """The column of the paths of pictures."""
    texts = {column_key(field.name): field.name for field in reversed(list(schema)) if _is_text(field.type)}
    usual = PATH_NAMES if columns.picture is None else (column_key(columns.picture),)
    return next((texts[name] for name in usual if name in texts), None)


def caption_column(schema: pa.Schema, columns: Columns = USUAL) -> str | None:
    """The column of captions: text, or lists or structs of text."""
    fitting = {column_key(field.name): field.name for field in reversed(list(schema)) if _can_be_caption(field.type)}
    usual = CAPTION_NAMES if columns.caption is None else (column_key(columns.caption),)
    return next((fitting[name] for name in usual if name in fitting), None)


def _is_rarely_a_picture(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_binary(kind) or is_list_of_bytes(kind)


def _is_text(kind: pa.DataType) -> bool:
    kind = plain_type(kind)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _can_be_caption(kind: pa.DataType) -> bool:
    kind = plain_type(kind)
    if pa.types.is_struct(kind):
        return any(
            column_key(field.name) in CAPTION_NAMES and _can_be_caption(field.type)
            for field in (kind.field(number) for number in range(kind.num_fields))
        )
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return not is_list_of_bytes(kind) and _can_be_caption(kind.value_type)
    return can_be_text(kind)


def read_schema(file: StorePath) -> pa.Schema:
    """The columns of a Parquet or Arrow file; raises one of `ERRORS` for a damaged one."""
    if file.suffix == ".parquet":
        return pq.read_schema(parquet_source(file))
    if isinstance(file, Path):
        with pa.memory_map(str(file)) as source:
            return _open_arrow(source)[0]
    with file.open("rb") as remote:
        return _open_arrow(pa.PythonFile(remote))[0]


def read_parquet(file: Path, name: str, columns: Columns, pictures: PictureFiles) -> Iterator[ForeignRow]:
    """The rows of a Parquet file."""
    try:
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=_READ_BYTES) as parquet:
            wanted = _wanted(parquet.schema_arrow, columns)
            batches = (
                batch
                for group in range(parquet.num_row_groups)  # pyarrow cannot join nested dictionaries of row groups
                for batch in parquet.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=wanted)
            )
            yield from _table_rows(batches, parquet.schema_arrow, name, columns, pictures)
    except ERRORS as error:
        raise DamagedFileError(words_of(error)) from error


def read_arrow(file: Path, name: str, columns: Columns, pictures: PictureFiles) -> Iterator[ForeignRow]:
    """The rows of an Arrow stream or an Arrow file. It is memory-mapped."""
    try:
        with pa.memory_map(str(file)) as source:
            schema, batches = _open_arrow(source)
            wanted = _wanted(schema, columns)
            pieces = (
                batch.slice(start, _ROWS_AT_ONCE).select(wanted)
                for batch in batches
                for start in range(0, batch.num_rows, _ROWS_AT_ONCE)
            )
            yield from _table_rows(pieces, schema, name, columns, pictures)
    except ERRORS as error:
        raise DamagedFileError(words_of(error)) from error


def _open_arrow(source: pa.NativeFile) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Schema and batches of a stream, as `datasets` writes it, or of a file with random access, as Polars does."""
    magic = source.read(len(_ARROW_FILE))
    source.seek(0)
    if magic != _ARROW_FILE:
        stream = pa.ipc.open_stream(source)
        return stream.schema, iter(stream)
    file = pa.ipc.open_file(source)
    return file.schema, map(file.get_batch, range(file.num_record_batches))


def _wanted(schema: pa.Schema, columns: Columns) -> list[str]:
    """The columns to read. Columns that another tool has added are ignored."""
    usual = {*CAPTION_NAMES, *(name for names in SPELLINGS.values() for name in names)}
    usual |= {"original_width", "original_height", "status", "error_message"}
    ours = {picture_column(schema, columns) or path_column(schema, columns), caption_column(schema, columns)}
    return [name for name in schema.names if column_key(name) in usual or name in ours]


def _table_rows(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, name: str, columns: Columns, pictures: PictureFiles
) -> Iterator[ForeignRow]:
    encoded, caption, number = picture_column(schema, columns), caption_column(schema, columns), 0
    paths = None if encoded else path_column(schema, columns)
    for batch in batches:
        values = {column: _values(batch[column]) for column in batch.schema.names if column != encoded}
        data = [None] * batch.num_rows if encoded is None else as_bytes(batch[encoded]).to_pylist()
        named = values[paths] if paths else _paths_beside(batch, encoded)
        for row in range(batch.num_rows):
            fields = {column_key(column): own[row] for column, own in values.items()}
            if columns.caption is not None:
                fields[CAPTION_NAMES[0]] = values[caption][row] if caption else None
            picture = data[row]
            if picture is None and isinstance(named[row], str):
                picture = pictures.read(named[row])
                fields.setdefault("error_message", None if picture else f"there is no file {named[row]}")
            yield ForeignRow(origin=f"{name}#{number}", picture=picture, fields=fields)
            number += 1


def _paths_beside(batch: pa.RecordBatch, column: str | None) -> list[Any]:
    """Hugging Face's paths of pictures whose bytes are not in the file."""
    array = plain(batch[column]) if column else None
    if array is None or not pa.types.is_struct(array.type) or array.type.get_field_index("path") < 0:
        return [None] * batch.num_rows
    path = pc.struct_field(array, "path")
    return list(as_text(path).to_pylist()) if can_be_text(path.type) else [None] * batch.num_rows


def _values(column: pa.Array) -> list[Any]:
    return list((as_text(column) if can_be_text(column.type) else plain(column)).to_pylist())
