"""Columns that other tools wrote, as text or as bytes, whatever type the tool has given them.

Categories of pandas, Polars and DuckDB are dictionaries; Polars has views; Impala, Hive and old Spark mark text as
bytes; Hugging Face stores pictures as {bytes, path}; some writers store bytes as lists of small integers. All of these
may be extension types, and may be wrapped in each other.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.files import BYTE_ORDER_MARK, decode_with_losses

#: For Arrow's regular expressions: what `model.files.text_damage` finds in a column that `as_text` has read.
DAMAGED_TEXT = r"[\x00\x{FFFD}]"


def column_key(name: str) -> str:
    """A column's name for comparisons: in lower case, without the mark at the start of a CSV file."""
    return name.removeprefix(BYTE_ORDER_MARK).lower()


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values, without extensions, dictionaries and runs."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    return kind


def can_be_text(kind: pa.DataType) -> bool:
    """Whether `as_text` reads a column of this type: text, bytes (only the name says if they are text), or nulls."""
    kind = plain_type(kind)
    return _is_string(kind) or _is_binary(kind) or pa.types.is_null(kind)


def can_be_bytes(kind: pa.DataType) -> bool:
    """Whether `as_bytes` reads a column of this type: bytes of any kind, or a struct that has them in `bytes`."""
    kind = plain_type(kind)
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and can_be_bytes(kind.field(index).type)
    return _is_binary(kind) or is_list_of_bytes(kind)


def is_list_of_bytes(kind: pa.DataType) -> bool:
    """Whether a type holds bytes as a list of small integers."""
    tests = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    is_list = any(getattr(pa.types, f"is_{name}")(kind) for name in tests)
    return is_list and kind.value_type in (pa.uint8(), pa.int8())


def plain(column: pa.Array) -> pa.Array:
    """The values of a column without extensions, dictionaries and runs."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return plain(column.storage)
    if pa.types.is_dictionary(kind):
        return _without_views(plain(column.dictionary)).take(column.indices)
    if pa.types.is_run_end_encoded(kind):
        runs = pa.RunEndEncodedArray.from_arrays(column.run_ends, pa.array(np.arange(len(column.values))))
        positions = pc.run_end_decode(runs).slice(column.offset, len(column))
        return _without_views(plain(column.values)).take(positions)
    return column


def as_text(column: pa.Array) -> pa.Array:
    """A column of text as large_string in valid UTF-8, without byte order marks.

    Neither Arrow nor Parquet checks the encoding. Text in UTF-16 and UTF-32 is decoded by its mark; of other text what
    can be read is kept, so that `model.files.text_damage` finds the damage.
    """
    column = plain(column)
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), pa.large_string())
    if pa.types.is_fixed_size_binary(column.type):  # padded
        raw = [None if value is None else value.rstrip(b"\0") for value in column.to_pylist()]
        column = pa.array(raw, pa.large_binary())
    column = column.cast(pa.large_binary())
    text = column.view(pa.large_string())
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        values = column.to_pylist()
        return pa.array([None if value is None else decode_with_losses(value) for value in values], pa.large_string())
    if pc.any(pc.starts_with(text, BYTE_ORDER_MARK)).as_py():
        text = pc.utf8_ltrim(text, BYTE_ORDER_MARK)
    return text


def as_bytes(column: pa.Array) -> pa.Array:
    """A column of bytes as large_binary; of a struct its member `bytes`."""
    column = plain(column)
    if pa.types.is_struct(column.type):
        return as_bytes(pc.struct_field(column, "bytes"))
    if is_list_of_bytes(column.type):
        lists = (None if not scalar.is_valid else scalar.values.fill_null(0) for scalar in column)
        raw = [None if values is None else values.to_numpy(zero_copy_only=False).tobytes() for values in lists]
        return pa.array(raw, pa.large_binary())
    return column.cast(pa.large_binary())


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_binary(kind: pa.DataType) -> bool:
    tests = ("binary", "large_binary", "binary_view", "fixed_size_binary")
    return any(getattr(pa.types, f"is_{name}")(kind) for name in tests)


def _without_views(column: pa.Array) -> pa.Array:
    """Views as the types that Arrow can take rows from."""
    if pa.types.is_string_view(column.type):
        return column.cast(pa.large_binary()).view(pa.large_string())
    if pa.types.is_binary_view(column.type):
        return column.cast(pa.large_binary())
    return column
