"""Files on a disk and in an object store: each behaviour on both."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from stages.cache import cache_folder
from stages.local_copies import forget_copy, local_copy
from stages.storage import (
    StorageError,
    StorePath,
    copy_file,
    file_records,
    is_remote,
    local_folder,
    modified,
    open_output,
    parquet_source,
    remove,
    store_path,
    upload,
    write_whole,
)


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> StorePath:
    if request.param == "disk":
        return tmp_path / "a run"
    return store_path(f"{request.getfixturevalue('bucket')}/a run/é%+#?")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("runs/micro", Path("runs/micro")),
        ("/data/a b", Path("/data/a b")),
        ("file:///data/a%20b", Path("/data/a b")),
        ("c:colon", Path("c:colon")),
    ],
)
def test_a_path_on_a_disk_is_a_plain_path(location: str, expected: Path) -> None:
    path = store_path(location)
    assert path == expected
    assert not is_remote(path)


@pytest.mark.parametrize("location", ["s3://bucket/run", "s3://bucket/run/", "s3a://bucket/run"])
def test_a_uri_is_a_folder_of_a_store(location: str) -> None:
    path = store_path(location)
    assert is_remote(path)
    assert (path / "stages").parent == path
    assert str(path) == location.rstrip("/"), "as processes are given it"


@pytest.mark.parametrize(
    ("location", "match"),
    [
        ("s3://", "names? no|no folder"),
        ("s3://bucket", "s3://bucket/folder"),
        ("s3://bucket/", "s3://bucket/folder"),
        ("gopher://bucket/run", "gopher"),
        ("S3://bucket/run", "S3"),
        ("gs://bucket/run", "gcsfs"),
        ("az://container/run", "adlfs"),
        ("abfs://container/run", "adlfs"),
    ],
)
def test_a_uri_that_cannot_be_read_is_one_sentence(location: str, match: str) -> None:
    with pytest.raises(StorageError, match=match) as caught:
        store_path(location)
    assert "\n" not in str(caught.value)


def test_a_small_file_is_replaced_as_a_whole(folder: StorePath) -> None:
    write_whole(folder / "a" / "note.json", "first, and longer")
    write_whole(folder / "a" / "note.json", "second")
    assert (folder / "a" / "note.json").read_text() == "second"
    assert [path.name for path in (folder / "a").iterdir()] == ["note.json"]


@pytest.mark.parametrize("size", [0, 10, 12_000_000])  # the last one takes several parts
def test_a_file_exists_when_it_is_whole(folder: StorePath, size: int) -> None:
    with open_output(folder / "data" / "file") as file:
        file.write(b"1" * size)
    assert file_records(folder)["data/file"]["bytes"] == size


def test_in_a_store_a_file_that_was_not_finished_does_not_exist(bucket: str) -> None:
    folder = store_path(f"{bucket}/run")

    def fail() -> None:
        with open_output(folder / "half") as file:
            file.write(b"1" * 12_000_000)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert file_records(folder) == {}


def test_the_records_name_each_file_with_size_and_checksum(folder: StorePath) -> None:
    assert file_records(folder) == {}
    for name, text in (("a.txt", "a"), ("deep/er/b.txt", "bb")):
        write_whole(folder / name, text)
    records = file_records(folder)
    assert {name: record["bytes"] for name, record in records.items()} == {"a.txt": 1, "deep/er/b.txt": 2}
    key, digest = ("etag", hashlib.md5) if is_remote(folder) else ("sha256", hashlib.sha256)
    assert records["a.txt"][key] == digest(b"a").hexdigest()
    write_whole(folder / "a.txt", "b")
    assert file_records(folder)["a.txt"] != records["a.txt"]


def test_a_folder_of_a_disk_is_uploaded_and_read_back(folder: StorePath, tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_whole(source / "deep" / "b.txt", "b")
    write_whole(source / "a.txt", "a")
    upload(source, folder / "copy")
    upload(source / "a.txt", folder / "single.txt")
    copied = local_copy(folder / "copy")
    assert (copied / "deep" / "b.txt").read_text() == "b"
    assert local_copy(folder / "single.txt").read_text() == "a"
    assert copied.name == "copy"
    copy_file(folder / "copy" / "a.txt", folder / "again.txt")
    assert (folder / "again.txt").read_text() == "a"


def test_libraries_write_to_a_folder_of_the_disk(folder: StorePath) -> None:
    with local_folder(folder / "report") as report:
        (report / "pages").mkdir()
        (report / "pages" / "index.html").write_text("<p>")
    assert (folder / "report" / "pages" / "index.html").read_text() == "<p>"


def test_a_copy_is_made_once_and_again_when_either_side_has_changed(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = store_path(f"{bucket}/run/adapter")
    write_whole(model / "weights", "w1")
    first = local_copy(model)
    assert first.is_relative_to(cache_folder())
    assert local_copy(model) == first
    with monkeypatch.context() as patch:
        patch.setattr(type(model.fs), "get_file", None)  # type: ignore[union-attr]
        assert local_copy(model) == first, "nothing is downloaded again"
    (first / "weights").write_text("damaged")
    assert local_copy(model) == first
    assert (first / "weights").read_text() == "w1"
    write_whole(model / "weights", "w2")
    second = local_copy(model)
    assert second != first
    assert (second / "weights").read_text() == "w2"


def test_processes_of_a_machine_forget_a_copy_together(bucket: str) -> None:
    """As the workers of a training do, all at the same time, when each has read the checkpoint."""
    folder = store_path(f"{bucket}/checkpoint")
    for number in range(40):
        write_whole(folder / f"{number}", "w")
    copied = local_copy(folder)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: forget_copy(folder, copied), range(8)))
    assert not copied.exists()
    assert (local_copy(folder) / "7").read_text() == "w"


def test_what_is_not_there_cannot_be_copied(bucket: str) -> None:
    with pytest.raises(FileNotFoundError, match="run/nothing"):
        local_copy(store_path(f"{bucket}/run/nothing"))


def test_only_what_is_named_is_removed(folder: StorePath) -> None:
    for name in ("a/1", "a/deep/2", "ab/3", "c"):
        write_whole(folder / name, "x")
    remove(folder / "a")
    remove(folder / "c")
    remove(folder / "never there")
    assert list(file_records(folder)) == ["ab/3"]


@pytest.mark.parametrize("root", [Path("/"), Path("/tmp/.."), UPath("s3://bucket"), UPath("s3://bucket/")])
def test_a_root_is_never_removed(root: StorePath) -> None:
    with pytest.raises(ValueError, match=r"is a (root folder|whole bucket)"):
        remove(root)


def test_the_time_of_a_file_is_the_stores(folder: StorePath) -> None:
    write_whole(folder / "a", "a")
    assert modified(folder / "a") > 1.7e9


def test_parquet_reads_what_it_needs_of_a_file(folder: StorePath) -> None:
    table = pa.table({"id": list(range(30_000)), "text": [str(number) * 30 for number in range(30_000)]})
    with open_output(folder / "part.parquet") as file:
        pq.write_table(table, file, row_group_size=3_000, compression="NONE", use_dictionary=False)
    source = parquet_source(folder / "part.parquet")
    assert pq.read_table(source, columns=["id"]) == table.select(["id"])
    if not isinstance(folder, Path):
        read: list[int] = []
        file = parquet_source(folder / "part.parquet")
        fetch = file._fetch_range

        def count(start: int, end: int) -> bytes:
            read.append(end - start)
            return bytes(fetch(start, end))

        file._fetch_range = file.cache.fetcher = count
        group = pq.ParquetFile(file).read_row_group(3, columns=["id"])
        assert group["id"].to_pylist() == list(range(9_000, 12_000))
        assert sum(read) < 0.2 * file.size
