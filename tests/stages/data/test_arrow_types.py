"""Text and pictures in every Arrow type that writers give them, through both readers of other tools' tables."""

from __future__ import annotations

import decimal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from stages.contract import StageError
from stages.data.arrow_types import as_bytes, as_text
from stages.filter.layouts import find_layout
from stages.ingest.config import IngestConfig
from stages.ingest.metadata import metadata_files, read_tables

TEXTS = ["a red cup", None, "雪の中の赤いカップ", "a red cup"]
RAW = [None if text is None else text.encode() for text in TEXTS]


def dictionary(values: pa.Array, indices: pa.DataType) -> pa.Array:
    """With its null among the indices, as almost all writers do."""
    return pa.DictionaryArray.from_arrays(
        pa.array([0, None, 1, 0], indices), pa.concat_arrays([values[:1], values[2:3]])
    )


def runs(values: pa.Array) -> pa.Array:
    return pa.RunEndEncodedArray.from_arrays(pa.array([1, 2, 3, 4], pa.int16()), values)


def as_type(kind: pa.DataType) -> pa.Array:
    return pa.array(TEXTS, kind)


TEXT_COLUMNS: dict[str, pa.Array] = {
    "string": as_type(pa.string()),
    "large_string": as_type(pa.large_string()),
    "string_view": as_type(pa.string_view()),
    "binary": pa.array(RAW, pa.binary()),
    "large_binary": pa.array(RAW, pa.large_binary()),
    "binary_view": pa.array(RAW, pa.binary_view()),
    "padded binary": pa.array([None if raw is None else raw.ljust(30, b"\0") for raw in RAW], pa.binary(30)),
    "slice": pa.concat_arrays([pa.array(["before"]), as_type(pa.string()), pa.array(["after"])]).slice(1, 4),
    "pandas category": pa.Array.from_pandas(pd.Series(TEXTS, dtype="category")),
    "pandas string": pa.Array.from_pandas(pd.Series(TEXTS, dtype="string")),
    "pandas object": pa.Array.from_pandas(pd.Series(TEXTS, dtype=object)),
    "json extension": as_type(pa.json_()),
    **{
        f"dictionary {indices}": dictionary(as_type(pa.string()), indices)
        for indices in (pa.int8(), pa.uint8(), pa.int16(), pa.uint32(), pa.int64())
    },
    "dictionary of large_string": dictionary(as_type(pa.large_string()), pa.int32()),
    "dictionary of binary": dictionary(pa.array(RAW), pa.int32()),
    "ordered dictionary": as_type(pa.string()).dictionary_encode().cast(pa.dictionary(pa.int32(), pa.string(), True)),
    "slice of a dictionary": pa.chunked_array([["x", *TEXTS]]).dictionary_encode().chunk(0).slice(1),
}
#: Types that Parquet does not have.
ARROW_TEXT_COLUMNS = TEXT_COLUMNS | {
    "runs": runs(as_type(pa.string())),
    "runs of string_view": runs(as_type(pa.string_view())),
    "dictionary of string_view": dictionary(as_type(pa.string_view()), pa.uint32()),
    "runs of a dictionary": runs(dictionary(as_type(pa.string()), pa.int8())),
    "dictionary with a null among its values": pa.DictionaryArray.from_arrays(
        pa.array([0, 1, 2, 0]), as_type(pa.string()).slice(0, 3)
    ),
}

PICTURES = [b"\x89PNG 1", None, b"\x89PNG 3", b"\x89PNG 1"]


def lists(kind: pa.DataType) -> pa.Array:
    return pa.array([None if data is None else list(data) for data in PICTURES], kind)


def structs(kind: pa.DataType, **more: pa.DataType) -> pa.Array:
    rows = [None if data is None else {"bytes": data} | dict.fromkeys(more) for data in PICTURES]
    if pa.types.is_dictionary(kind):
        member = pa.array(PICTURES).dictionary_encode()
        return pa.StructArray.from_arrays([member], ["bytes"])
    return pa.array(rows, pa.struct({"bytes": kind, **more}))


PICTURE_COLUMNS: dict[str, pa.Array] = {
    **{
        str(kind): pa.array(PICTURES, kind) for kind in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(6))
    },
    "dictionary": pa.array(PICTURES).dictionary_encode(),
    "list<uint8>": lists(pa.list_(pa.uint8())),
    "list<int8>": pa.array([None if p is None else np.frombuffer(p, np.int8) for p in PICTURES], pa.list_(pa.int8())),
    "large_list<uint8>": lists(pa.large_list(pa.uint8())),
    "list_view<uint8>": lists(pa.list_view(pa.uint8())),
    "Hugging Face": structs(pa.binary(), path=pa.string()),
    "struct of large_binary": structs(pa.large_binary(), path=pa.large_string()),
    "struct of views": structs(pa.binary_view(), path=pa.string_view()),
    "struct of a dictionary": structs(pa.dictionary(pa.int32(), pa.binary())),
    "struct of list<uint8>": pa.array(
        [None if data is None else {"bytes": list(data)} for data in PICTURES],
        pa.struct({"bytes": pa.list_(pa.uint8())}),
    ),
}
ARROW_PICTURE_COLUMNS = PICTURE_COLUMNS | {
    "fixed_size_list<uint8>": lists(pa.list_(pa.uint8(), 6)),
    "runs of binary_view": runs(pa.array(PICTURES, pa.binary_view())),
    "dictionary of a struct": dictionary(structs(pa.binary(), path=pa.string()), pa.int8()),
}


def write_parquet(folder: Path, table: pa.Table) -> None:
    pq.write_table(table, folder / "table.parquet")


def write_parquet_without_arrow_types(folder: Path, table: pa.Table) -> None:
    """As writers that do not know Arrow do."""
    pq.write_table(table, folder / "table.parquet", store_schema=False)


def write_arrow_stream(folder: Path, table: pa.Table) -> None:
    with pa.ipc.new_stream(folder / "table.arrow", table.schema) as stream:
        stream.write_table(table)


def write_arrow_file(folder: Path, table: pa.Table) -> None:
    with pa.ipc.new_file(folder / "table.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=3)


Write = Callable[[Path, pa.Table], None]
PARQUET: list[Write] = [write_parquet, write_parquet_without_arrow_types]
ARROW: list[Write] = [write_arrow_stream, write_arrow_file]


def foreign_rows(folder: Path) -> list[tuple[bytes | None, Any]]:
    layout = find_layout(folder)
    (file,) = layout.files
    return [(row.picture, row.fields["text"]) for row in layout.read(file, "table")]


def metadata_columns(file: Path) -> dict[str, list[Any]]:
    tables = read_tables(metadata_files(str(file)), IngestConfig())
    return pa.concat_tables(tables).to_pydict()


@pytest.mark.parametrize("write", PARQUET)
@pytest.mark.parametrize("name", TEXT_COLUMNS)
def test_text_of_parquet_in_every_type(name: str, write: Write, tmp_path: Path) -> None:
    column = TEXT_COLUMNS[name]
    write(tmp_path, pa.table({"URL": column, "text": column, "lang": column, "image": PICTURES}))
    found = metadata_columns(tmp_path)
    assert found["url"] == found["caption"] == found["language"] == TEXTS
    assert foreign_rows(tmp_path) == list(zip(PICTURES, TEXTS, strict=True))


@pytest.mark.parametrize("write", ARROW)
@pytest.mark.parametrize("name", ARROW_TEXT_COLUMNS)
def test_text_of_arrow_in_every_type(name: str, write: Write, tmp_path: Path) -> None:
    write(tmp_path, pa.table({"text": ARROW_TEXT_COLUMNS[name], "image": PICTURES}))
    assert foreign_rows(tmp_path) == list(zip(PICTURES, TEXTS, strict=True))


@pytest.mark.parametrize("write", PARQUET)
@pytest.mark.parametrize("name", PICTURE_COLUMNS)
def test_pictures_of_parquet_in_every_type(name: str, write: Write, tmp_path: Path) -> None:
    write(tmp_path, pa.table({"text": TEXTS, "image": PICTURE_COLUMNS[name]}))
    assert [picture for picture, _ in foreign_rows(tmp_path)] == PICTURES


@pytest.mark.parametrize("write", ARROW)
@pytest.mark.parametrize("name", ARROW_PICTURE_COLUMNS)
def test_pictures_of_arrow_in_every_type(name: str, write: Write, tmp_path: Path) -> None:
    write(tmp_path, pa.table({"text": TEXTS, "image": ARROW_PICTURE_COLUMNS[name]}))
    assert [picture for picture, _ in foreign_rows(tmp_path)] == PICTURES


def test_row_groups_may_have_different_dictionaries(tmp_path: Path) -> None:
    def part(k: int) -> pa.Table:
        picture = pa.StructArray.from_arrays([pa.array([b"%d" % k, b"x"]).dictionary_encode()], ["bytes"])
        text = pa.array([f"t{k}", "t"]).dictionary_encode()
        return pa.table({"URL": pa.array([f"u{k}", "v"]).dictionary_encode(), "text": text, "image": picture})

    with pq.ParquetWriter(tmp_path / "table.parquet", part(0).schema) as file:
        for k in range(3):
            file.write_table(part(k))
    assert metadata_columns(tmp_path)["url"] == ["u0", "v", "u1", "v", "u2", "v"]
    assert [picture for picture, _ in foreign_rows(tmp_path)] == [b"0", b"x", b"1", b"x", b"2", b"x"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([640, None]),
        pa.array([640, None], pa.uint16()),
        pa.array([640.0, float("nan")]),
        pa.array([np.float16(640), None]),
        pa.array([decimal.Decimal("640.00"), None]),
        pa.array(["640", None]),
        pa.array([" 640.0 ", ""]),
        pa.array(["6.4e2", "NaN"], pa.large_string()),
        pa.array(["640", "None"], pa.string_view()),
        pa.array([b"640", b"\\N"]),
        pa.array(["640", "null"]).dictionary_encode(),
        pa.array([640, None]).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_numbers_in_every_type(column: pa.Array, tmp_path: Path) -> None:
    text = pa.array(["http://h/1", "http://h/2"])
    pq.write_table(pa.table({"url": text, "text": text, "WIDTH": column, "similarity": column}), tmp_path / "t.parquet")
    found = metadata_columns(tmp_path)
    assert found["width"][0] == found["similarity"][0] == 640
    assert found["width"][1] is None or np.isnan(found["width"][1])


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("TEXT", pa.array([["a"]]), "'TEXT' of .* must hold text, not list<"),
        ("TEXT", pa.array([{"raw": "a"}]), "'TEXT' of .* must hold text, not struct<"),
        ("TEXT", pa.array([1]).dictionary_encode(), "'TEXT' of .* must hold text, not int64"),
        ("WIDTH", pa.array(["wide"]), "'WIDTH' of .* must hold numbers, not string .*'wide'"),
        ("WIDTH", pa.array([[1]]), "'WIDTH' of .* must hold numbers, not list<"),
    ],
)
def test_other_types_are_named(name: str, column: pa.Array, message: str, tmp_path: Path) -> None:
    table = {"URL": ["http://h/1"], "TEXT": ["a"]} | {name: column}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    with pytest.raises(StageError, match=message) as caught:
        metadata_columns(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("other", [pa.binary(16), pa.list_(pa.uint8(), 16), pa.string()], ids=str)
def test_hashes_and_text_are_not_taken_for_pictures(other: pa.DataType, tmp_path: Path) -> None:
    hashes = pa.array([b"0123456789abcdef" if other != pa.string() else "hash"] * 4, other)
    write_parquet(tmp_path, pa.table({"md5": hashes, "text": RAW, "content": PICTURES}))
    assert foreign_rows(tmp_path) == list(zip(PICTURES, TEXTS, strict=True))


def test_the_first_column_name_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    pq.write_table(pa.table({"\ufeffURL": ["u"], "TEXT": ["t"], "image": [b"p"]}), tmp_path / "t.parquet")
    assert metadata_columns(tmp_path)["url"] == ["u"]
    layout = find_layout(tmp_path)
    assert next(layout.read(layout.files[0], "t")).fields["url"] == "u"


def test_sound_columns_are_not_copied() -> None:
    text, data = pa.array(TEXTS, pa.large_string()), pa.array(PICTURES, pa.large_binary())
    assert as_text(text).buffers()[2].address == text.buffers()[2].address
    assert as_bytes(data).buffers()[2].address == data.buffers()[2].address


def test_what_only_arrow_in_memory_has() -> None:
    assert as_text(pa.nulls(2)).to_pylist() == [None, None]
    assert as_text(pc.run_end_encode(pa.array(["a", "b", "b"])).slice(2)).to_pylist() == ["b"]
    nested = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, None]), as_type(pa.string()).dictionary_encode())
    assert as_text(nested).to_pylist() == [*TEXTS[:3], None]
