"""Random access to a dataset in a bucket, against the same dataset on a disk."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages.cache import cache_folder
from stages.contract import StageError
from stages.data import row_groups
from stages.data.datasets import PictureStore, part_writer, read_dataset
from stages.storage import StorePath, copy_folder, store_path

SCHEMA = pa.schema(
    [
        pa.field("picture_id", pa.string(), nullable=False),
        pa.field("caption", pa.string()),
        pa.field("views", pa.list_(pa.int32())),
        pa.field("picture", pa.binary()),
    ]
)
SIZES = (200, 1, 128, 0, 150)  # rows of each file


def write(folder: StorePath, seed: int = 0) -> list[str]:
    """A dataset of some files; returns its ids."""
    random = np.random.default_rng(seed)
    ids: list[str] = []
    for number, size in enumerate(SIZES):
        own = [f"{seed}-{len(ids) + row:05d}" for row in range(size)]
        rows = [
            {"picture_id": key, "caption": f"of {key}", "views": [1, 2], "picture": random.bytes(900)} for key in own
        ]
        with part_writer(folder, number, SCHEMA) as part:
            part.write(pa.Table.from_pylist(rows, SCHEMA))
        ids += own
    return ids


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many requests of each kind were sent."""
    import s3fs

    sent: Counter[str] = Counter()
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        sent[method] += 1
        return await call(self, method, *arguments, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    return sent


def disk(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    """Let the disk of the cache have this share of its room free."""
    size = 100 * 2**20
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(total=size, free=round(free * size)))


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own disk may be fuller than the cache allows."""
    disk(monkeypatch, free=0.5)


def test_the_same_pictures_are_read(bucket: str, tmp_path: Path) -> None:
    ids = write(tmp_path / "pictures")
    folder = store_path(f"{bucket}/pictures")
    copy_folder(tmp_path / "pictures", folder)
    local, stored = (PictureStore(place, "picture_id", cached_groups=2) for place in (tmp_path / "pictures", folder))
    assert list(stored) == list(local) == ids
    assert len(stored) == len(ids)
    for key in np.random.default_rng(1).permutation(ids)[:100]:
        assert stored[key] == local[key]
        assert key in stored
    assert "elsewhere" not in stored
    with pytest.raises(KeyError, match="has no picture 'elsewhere'"):
        stored["elsewhere"]
    for columns in (["picture_id"], ["views", "caption"], SCHEMA.names):
        assert read_dataset(folder, SCHEMA, columns).equals(read_dataset(tmp_path / "pictures", SCHEMA, columns))


def test_a_group_is_requested_once_by_all_processes_of_a_machine(bucket: str, requests: Counter[str]) -> None:
    folder = store_path(f"{bucket}/pictures")
    ids = write(folder)
    groups = 2 + 1 + 1 + 2
    requests.clear()
    for _ in ("a process", "another"):
        store = PictureStore(folder, "picture_id", cached_groups=1)
        for key in ids:
            store[key]
    footers, id_columns = len(SIZES), groups
    assert requests["get_object"] == footers + id_columns + groups
    assert requests["list_objects_v2"] == 2 * 2


def test_another_dataset_in_the_same_place_is_read_again(bucket: str) -> None:
    folder = store_path(f"{bucket}/pictures")
    for seed in (1, 2):
        ids = write(folder, seed)
        store = PictureStore(folder, "picture_id")
        assert list(store) == ids
        assert len(store[ids[7]]) == 900


def test_the_cache_leaves_a_share_of_the_disk_free(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store_path(f"{bucket}/pictures")
    ids = write(folder)
    disk(monkeypatch, free=0.19)
    store = PictureStore(folder, "picture_id", cached_groups=1)
    for key in ids:
        assert len(store[key]) == 900
        assert len(list((cache_folder() / "row_groups").glob("*/picture-*.arrow"))) <= 1


def test_a_full_disk_makes_it_slower_only(bucket: str, monkeypatch: pytest.MonkeyPatch, requests: Counter[str]) -> None:
    folder = store_path(f"{bucket}/pictures")
    ids = write(folder)
    store = PictureStore(folder, "picture_id", cached_groups=1)
    assert len(store) == len(ids)

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pa, "OSFile", full)
    requests.clear()
    for key in (ids[0], ids[150], ids[0]):
        assert len(store[key]) == 900
    assert requests["get_object"] == 3


def test_a_store_that_is_away_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store_path(f"{bucket}/pictures")
    ids = write(folder)
    store = PictureStore(folder, "picture_id")
    assert len(store) == len(ids)

    def refuse(*arguments: Any) -> None:
        raise OSError(16, "slow down")  # as s3fs for 503 SlowDown

    monkeypatch.setattr(row_groups, "read_row_groups", refuse)
    with pytest.raises(StageError, match=r"^s3://.*/part-00000.parquet: the store asked to slow down"):
        store[ids[0]]
