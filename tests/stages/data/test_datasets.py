"""Datasets: rows are read as they were written, in order, and errors name the file."""

from __future__ import annotations

import pickle
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.contract import StageError
from stages.data import datasets
from stages.data.datasets import PictureStore, dataset_files, read_dataset, write_dataset
from stages.data.schemas import FRAMES, PLAN

SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("picture", pa.binary(), nullable=False),
        pa.field("score", pa.float32()),
    ]
)


def rows(pictures: dict[str, bytes]) -> pa.Table:
    return pa.table(
        {"sample_id": list(pictures), "picture": list(pictures.values()), "score": [None] * len(pictures)},
        schema=SCHEMA,
    )


def contents(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in dataset_files(folder)]


@settings(max_examples=25, deadline=None)
@given(pictures=st.dictionaries(st.text(min_size=1, max_size=5), st.binary(max_size=40), max_size=40))
def test_rows_are_read_back_sorted_and_by_id(
    pictures: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("data") / "samples"
    with patch.object(datasets, "ROWS_PER_FILE", 7), patch.object(datasets, "ROWS_PER_GROUP", 3):
        assert write_dataset(folder, rows(pictures), SCHEMA) == len(pictures)
    table = read_dataset(folder, SCHEMA)
    assert table.column("sample_id").to_pylist() == sorted(pictures, key=lambda key: key.encode())
    store = PictureStore(folder, "sample_id", cached_groups=2)
    assert {key: store[key] for key in store} == pictures
    assert len(store) == len(pictures)


def test_the_same_rows_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    pictures = {f"{number:03d}": bytes([number]) for number in range(20)}
    write_dataset(tmp_path / "a", rows(pictures), SCHEMA)
    write_dataset(tmp_path / "b", rows(dict(reversed(pictures.items()))), SCHEMA)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_nested_columns_and_a_two_column_order(tmp_path: Path) -> None:
    frame = {
        "frame_id": "f", "category": "mug", "instance": "1", "picture": b"x", "width": 4, "height": 4,
        "rotation": [1.0, 0.0, 0.0, 0.0], "translation": [0.0, 0.0, 1.5],
    }  # fmt: skip
    write_dataset(tmp_path / "frames", pa.Table.from_pylist([frame], schema=FRAMES), FRAMES)
    assert read_dataset(tmp_path / "frames", FRAMES).to_pylist() == [frame]
    plan = [
        {"step": step, "slot": slot, "source": "multiview", "reference_id": "r", "target_id": "t", "caption": "c"}
        | dict.fromkeys(("crop_ratio", "crop_x", "crop_y", "target_crop_x", "target_crop_y"), 0.5)
        | dict.fromkeys(("height", "width", "original_height", "original_width"), 64)
        for step, slot in [(1, 0), (0, 1), (0, 0)]
    ]
    write_dataset(tmp_path / "plan", pa.Table.from_pylist(plan, schema=PLAN), PLAN, order=("step", "slot"))
    places = read_dataset(tmp_path / "plan", PLAN, columns=["step", "slot"]).to_pylist()
    assert [(row["step"], row["slot"]) for row in places] == [(0, 0), (0, 1), (1, 0)]


def test_nulls_and_missing_columns_are_refused_when_writing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="picture must not hold nulls"):
        write_dataset(tmp_path / "a", pa.table({"sample_id": ["x"], "picture": [None], "score": [None]}), SCHEMA)
    with pytest.raises(ValueError, match="no column score"):
        write_dataset(tmp_path / "a", pa.table({"sample_id": ["x"], "picture": [b""]}), SCHEMA)


def test_a_missing_column_or_another_type_is_named_when_reading(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    pq.write_table(pa.table({"sample_id": ["x"], "picture": ["text"]}), tmp_path / "d" / "part-00000.parquet")
    with pytest.raises(StageError, match="lacks the column 'score'; its columns are sample_id, picture"):
        read_dataset(tmp_path / "d", SCHEMA, columns=["score"])
    with pytest.raises(StageError, match="'picture' is string, expected binary"):
        read_dataset(tmp_path / "d", SCHEMA, columns=["picture"])
    with pytest.raises(StageError, match="holds no part"):
        read_dataset(tmp_path / "nothing", SCHEMA)


def test_only_the_path_of_a_store_is_pickled(tmp_path: Path) -> None:
    write_dataset(tmp_path / "samples", rows({"a": b"1", "b": b"2"}), SCHEMA)
    store = PictureStore(tmp_path / "samples", "sample_id")
    assert store["b"] == b"2"
    assert len(pickle.dumps(store)) < 400
    assert pickle.loads(pickle.dumps(store))["a"] == b"1"
    assert "c" not in store
    with pytest.raises(KeyError, match="has no picture 'c'"):
        store["c"]


def test_ids_with_the_same_hash_are_distinguished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "_hashes_of", lambda ids: np.zeros(len(ids), np.uint64))
    pictures = {f"{number:03d}": bytes([number]) for number in range(200)}
    write_dataset(tmp_path / "samples", rows(pictures), SCHEMA)
    store = PictureStore(tmp_path / "samples", "sample_id")
    assert {key: store[key] for key in store} == pictures
    with pytest.raises(KeyError, match="has no picture '200'"):
        store["200"]


def test_the_index_of_a_store_takes_sixteen_bytes_a_row(tmp_path: Path) -> None:
    write_dataset(tmp_path / "samples", rows({f"{number:05d}": b"" for number in range(20_001)}), SCHEMA)
    store = PictureStore(tmp_path / "samples", "sample_id")
    assert "00000" in store
    arrays = [value for value in vars(store).values() if isinstance(value, np.ndarray)]
    groups = -(-20_000 // 128) + 1
    assert sum(array.nbytes for array in arrays) == 16 * 20_001 + 8 * groups


@pytest.mark.parametrize(
    ("size", "rows_of_a_group"), [(10, 128), (60_000, 128), (100_000, 79), (1_000_000, 7), (9_000_000, 1)]
)
def test_a_picture_is_read_with_eight_megabytes_at_most(size: int, rows_of_a_group: int, tmp_path: Path) -> None:
    pictures = {f"{number:03d}": bytes(size) for number in range(3 if size > 1_000_000 else 200)}
    write_dataset(tmp_path, rows(pictures), SCHEMA)
    (file,) = dataset_files(tmp_path)
    metadata = pq.read_metadata(file)
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert max(groups) == rows_of_a_group
    assert PictureStore(tmp_path, "sample_id")["002"] == bytes(size)
