"""The list of URLs to download: columns, file systems, rules and repeated rows of the metadata."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.contract import StageError
from stages.data.schemas import REJECTED, content_id
from stages.ingest import metadata, partitions
from stages.ingest.config import IngestConfig
from stages.ingest.metadata import metadata_files
from stages.ingest.outcomes import FAILED, REJECTED_BY_METADATA
from stages.ingest.url_list import write_url_list


def write_metadata(file: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listed:
    """A list of URLs, read back."""

    rows: pa.Table
    rejected: pa.Table
    total: int
    shards: list[int]


def read(source: Path | str, **changes: Any) -> Listed:
    with tempfile.TemporaryDirectory() as folder:
        settings = dataclasses.replace(IngestConfig(), **changes)
        urls = write_url_list(metadata_files(str(source)), settings, Path(folder))
        found = Listed(
            rows=pq.read_table(urls.file),
            rejected=pa.concat_tables([REJECTED.empty_table(), *urls.rejected_rows.tables()]),
            total=urls.total,
            shards=urls.shard_sizes,
        )
    assert found.rows.num_rows == urls.wanted
    assert Counter(found.rejected["reason"].to_pylist()) == urls.rejected
    assert found.total == urls.wanted + urls.rejected.total()
    return found


cells = st.none() | st.sampled_from(["", " ", "http://h/1.jpg", "http://h/2.jpg", "ünïcode"])


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(cells, cells), min_size=1, max_size=20))
def test_every_row_is_listed_once_or_rejected_once(
    pairs: list[tuple[str | None, str | None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    columns = {
        "URL": pa.array([url for url, _ in pairs], pa.string()),
        "TEXT": pa.array([text for _, text in pairs], pa.string()),
    }
    file = tmp_path_factory.mktemp("metadata") / "rows.parquet"
    pq.write_table(pa.table(columns), file)
    wanted: dict[str, str] = {}
    reasons = []
    for url, text in pairs:
        if not (url or "").strip():
            reasons.append("no_url")
        elif not (text or "").strip():
            reasons.append("no_caption")
        elif not str(url).startswith("http"):
            reasons.append("bad_url")
        elif url in wanted:
            reasons.append("duplicate_url")
        else:
            wanted[str(url)] = str(text)
    if not wanted:
        with pytest.raises(StageError, match=r"of the \d+ rows of .* none is wanted"):
            read(file)
        return
    urls = read(file)
    assert urls.rows["sample_id"].to_pylist() == sorted(content_id(*pair) for pair in wanted.items())
    assert sorted(urls.rejected["reason"].to_pylist()) == sorted(reasons)
    assert urls.total == len(pairs)


def test_of_repeated_rows_the_first_counts_and_absent_scores_are_null(tmp_path: Path) -> None:
    rows = [
        {"URL": "http://h/u", "TEXT": "t", "AESTHETIC_SCORE": 5.0},
        {"URL": "http://h/u", "TEXT": "other", "AESTHETIC_SCORE": 6.0},
    ]
    urls = read(write_metadata(tmp_path / "m.parquet", rows))
    row = urls.rows.to_pylist()[0]
    assert (row["caption"], row["aesthetic"], row["similarity"]) == ("t", 5.0, None)
    assert [(row["caption"], row["reason"]) for row in urls.rejected.to_pylist()] == [("other", "duplicate_url")]


def write_many(folder: Path, rows: int, files: int) -> None:
    """Metadata in which every fifth row repeats the URL of an earlier one, and every seventh has no caption."""
    folder.mkdir()
    for number in range(files):
        numbers = range(number, rows, files)
        urls = [f"http://host/{row - row % 5 if row % 5 == 4 else row}.jpg" for row in numbers]
        texts = [None if row % 7 == 3 else f"a picture of thing number {row} of very many" for row in numbers]
        pq.write_table(pa.table({"URL": urls, "TEXT": texts}), folder / f"{number}.parquet", row_group_size=500)


def test_many_partitions_give_the_list_that_one_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_many(tmp_path / "m", 3000, files=3)
    whole = read(tmp_path / "m", samples_per_shard=100)
    monkeypatch.setattr(partitions, "ROWS_PER_PARTITION", 200)
    monkeypatch.setattr(metadata, "_ROWS_AT_ONCE", 70)
    pieces = read(tmp_path / "m", samples_per_shard=100)
    assert pieces.rows == whole.rows
    assert pieces.shards == whole.shards
    assert set(pieces.shards[:-1]) == {100}
    ids = pieces.rows["sample_id"].to_pylist()
    assert ids == sorted(set(ids))

    def details(listed: Listed) -> list[tuple[str, ...]]:
        return sorted(tuple(row.values()) for row in listed.rejected.to_pylist() if row["caption"])

    assert details(pieces) == details(whole)
    assert pieces.rejected["reason"].value_counts().to_pylist() == whole.rejected["reason"].value_counts().to_pylist()


def test_memory_does_not_grow_with_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peaks of Arrow and Python. A list in memory would take eight times as much for eight times the rows."""
    monkeypatch.setattr(partitions, "ROWS_PER_PARTITION", 500)
    monkeypatch.setattr(metadata, "_ROWS_AT_ONCE", 500)
    peaks = []
    for rows in (4_000, 32_000):
        write_many(tmp_path / str(rows), rows, files=2)
        before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
        pa.set_memory_pool(pool)
        tracemalloc.start()
        try:
            folder = tmp_path / f"list{rows}"
            write_url_list(metadata_files(str(tmp_path / str(rows))), IngestConfig(samples_per_shard=100), folder)
            peaks.append(pool.max_memory() + tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
            pa.set_memory_pool(before)
    assert peaks[1] < 2 * peaks[0]


def test_of_two_rows_with_the_same_id_one_is_kept(tmp_path: Path) -> None:
    rows = [{"URL": "http://h/a\nb", "TEXT": "c"}, {"URL": "http://h/a", "TEXT": "b\nc"}]
    urls = read(write_metadata(tmp_path / "m.parquet", rows))
    assert urls.rows["url"].to_pylist() == ["http://h/a\nb"] or urls.rows["url"].to_pylist() == ["http://h/a"]
    assert urls.rejected["reason"].to_pylist() == ["duplicate_id"]
    assert urls.rejected["sample_id"].to_pylist() == urls.rows["sample_id"].to_pylist()


@pytest.mark.parametrize(
    "names",
    [
        ("URL", "TEXT", "punsafe", "AESTHETIC_SCORE", "LANGUAGE"),  # LAION-Aesthetics
        ("url", "caption", "punsafe", "aesthetic", "language"),  # Re-LAION, img2dataset
        ("url", "text", "nsfw_score_opennsfw2", "aesthetic_score_laion_v2", "lang"),  # COYO
    ],
)
def test_the_usual_column_names_are_recognised(names: tuple[str, ...], tmp_path: Path) -> None:
    values = ("http://h/1", "a cup", 0.25, 5.5, "en")
    row = read(write_metadata(tmp_path / "m.parquet", [dict(zip(names, values, strict=True))])).rows.to_pylist()[0]
    assert tuple(row[name] for name in ("url", "caption", "unsafe", "aesthetic", "language")) == values


@pytest.mark.parametrize(
    ("setting", "column", "bad", "good", "reason"),
    [
        ({"min_similarity": 0.3}, "similarity", 0.25, 0.5, "similarity"),
        ({"max_unsafe": 0.5}, "punsafe", 0.75, 0.5, "unsafe"),
        ({"max_watermark": 0.5}, "pwatermark", 0.75, 0.25, "watermark"),
        ({"min_aesthetic": 5.0}, "AESTHETIC_SCORE", 4.5, 5.0, "aesthetic"),
        ({"languages": ["EN", "de"]}, "LANGUAGE", "fr", "en", "language"),
        ({"languages": ["en"]}, "LANGUAGE", "eng", "En_us", "language"),
        ({}, "WIDTH", 20, 100, "too_small"),
        ({"min_image_size": 10}, "HEIGHT", 301, 300, "aspect_ratio"),
        ({"min_image_size": 10}, "WIDTH", 30, 34, "aspect_ratio"),
    ],
)
def test_rules_reject_by_the_metadata_and_missing_values_are_no_reason(
    setting: dict[str, Any], column: str, bad: Any, good: Any, reason: str, tmp_path: Path
) -> None:
    rows = [
        {"URL": f"http://h/{name}", "TEXT": "t", "WIDTH": 100, "HEIGHT": 100} | {column: value}
        for name, value in {"bad": bad, "good": good, "unknown": None}.items()
    ]
    urls = read(write_metadata(tmp_path / "m.parquet", rows), **setting)
    assert {row["url"][9:] for row in urls.rows.to_pylist()} == {"good", "unknown"}
    (rejected,) = urls.rejected.to_pylist()
    assert (rejected["url"], rejected["reason"]) == ("http://h/bad", reason)
    assert str(bad) in rejected["detail"]


def test_captions_that_are_too_long_are_cut_and_rejected(tmp_path: Path) -> None:
    rows = [{"url": "http://h/1", "text": "a" * 1_000_000}, {"url": "http://h/2", "text": "cup"}]
    urls = read(write_metadata(tmp_path / "m.parquet", rows))
    (rejected,) = urls.rejected.to_pylist()
    assert rejected["reason"] == "long_caption"
    assert len(rejected["caption"]) == 1000


def test_damaged_urls_are_rejected_and_damaged_languages_are_unknown(tmp_path: Path) -> None:
    urls = pa.array([b"http://h/1", b"http://h/caf\xe9", b"\xef\xbb\xbfhttp://h/3"])
    languages = pa.array([b"\xff", b"en", b"fr"])
    pq.write_table(pa.table({"url": urls, "text": ["a", "b", "c"], "lang": languages}), tmp_path / "m.parquet")
    listed = read(tmp_path / "m.parquet")
    assert {row["url"]: row["language"] for row in listed.rows.to_pylist()} == {"http://h/1": None, "http://h/3": "fr"}
    (rejected,) = listed.rejected.to_pylist()
    assert (rejected["url"], rejected["reason"]) == ("http://h/caf\ufffd", "bad_url")
    assert "U+FFFD" in rejected["detail"]


def test_a_url_is_rejected_with_what_is_wrong(tmp_path: Path) -> None:
    reasons = {
        "//h/x": "relative URL",
        "ftp://h/": "the scheme is 'ftp'",
        "http://h:99999/": "port",
        "http://[::1": "IPv6",
    }
    good = ["http:\\\\h\\x", " http:/h/y", "HTTP://h/\u00e4 b"]
    rows = [{"url": url, "text": "t"} for url in [*reasons, *good]]
    listed = read(write_metadata(tmp_path / "m.parquet", rows))
    assert sorted(listed.rows["url"].to_pylist()) == sorted(good)
    for row in listed.rejected.to_pylist():
        assert row["reason"] == "bad_url"
        assert reasons[row["url"]] in row["detail"]


def test_files_are_found_on_every_file_system(tmp_path: Path) -> None:
    folders = [tmp_path, tmp_path / "more"]
    (tmp_path / "more").mkdir()
    memory = fsspec.filesystem("memory")
    for number, folder in enumerate(folders):
        file = write_metadata(folder / f"{number}.parquet", [{"url": f"http://h/{number}", "text": "t"}])
        memory.pipe(f"/laion/{file.name}", file.read_bytes())
    (tmp_path / "_SUCCESS.parquet").write_text("no data")
    for source in (str(tmp_path), tmp_path.as_uri(), "memory://laion"):
        urls = read(source)
        assert sorted(urls.rows["url"].to_pylist()) == ["http://h/0", "http://h/1"], source


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ({"address": "u", "TEXT": "t"}, {}, r"lacks a column url or .*; its columns are address, TEXT: .*url_column"),
        ({"URL": "u"}, {}, "lacks a column text or caption"),
        ({"URL": "u", "TEXT": "t"}, {"caption_column": "title"}, "lacks the column 'title'"),
        ({"URL": "u", "TEXT": 3}, {}, r"'TEXT' .* must hold text, not int64"),
        ({"URL": "u", "TEXT": "t", "similarity": "x"}, {}, r"'similarity' .* must hold numbers, not string"),
    ],
)
def test_a_column_that_is_missing_or_of_another_type_is_named(
    row: dict[str, Any], changes: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=message) as caught:
        read(write_metadata(tmp_path / "rows.parquet", [row]), **changes)
    assert "\n" not in str(caught.value)


def test_missing_empty_and_unreadable_metadata_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"there is no file or folder .*/missing"):
        read(tmp_path / "missing")
    with pytest.raises(StageError, match=r"holds no \*.parquet"):
        read(tmp_path)
    with pytest.raises(StageError, match=r"nosuch://bucket cannot be listed"):
        metadata_files("nosuch://bucket")
    (tmp_path / "text.parquet").write_text("URL,TEXT\n")
    with pytest.raises(StageError, match="is not a Parquet file") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)
    empty = tmp_path / "empty.parquet"
    pq.write_table(pa.table({"URL": pa.array([], pa.string()), "TEXT": pa.array([], pa.string())}), empty)
    with pytest.raises(StageError, match="holds no rows"):
        read(empty)


HIDDEN = (
    "_delta_log/0.checkpoint.parquet",
    "_temporary/0/a.parquet",
    ".cache/a.parquet",
    "._0.parquet",
    "a/_b/c.parquet",
)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_hidden_files_are_no_metadata(hidden: str, tmp_path: Path) -> None:
    folder = tmp_path / "_metadata"
    for name in ("a/0.parquet", hidden):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    expected = [str(folder / "a" / "0.parquet")]
    assert metadata_files(str(folder)).paths == expected
    assert metadata_files(folder.as_uri()).paths == expected


def test_hidden_files_of_other_file_systems_are_no_metadata() -> None:
    memory = fsspec.filesystem("memory")
    for name in (*HIDDEN, "a/0.parquet"):
        memory.pipe(f"/_hidden/names/{name}", b"")
    try:
        found = metadata_files("memory://_hidden/names/").paths
    finally:
        memory.rm("/_hidden", recursive=True)
    assert [path.rpartition("names/")[2] for path in found] == ["a/0.parquet"]


def test_metadata_whose_name_is_not_text_is_read(tmp_path: Path) -> None:
    for number, name in enumerate((b"caf\xe9/0.parquet", b"\xff.parquet", b"1.parquet")):
        file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        file.parent.mkdir(exist_ok=True)
        with file.open("wb") as sink:
            pq.write_table(pa.table({"URL": [f"http://h/{number}.jpg"], "TEXT": ["a red cup"]}), sink)
    assert read(tmp_path).rows.num_rows == 3
    (tmp_path / os.fsdecode(b"\xfe.parquet")).touch()
    with pytest.raises(StageError, match=r"\\xfe\.parquet is not a Parquet file"):
        read(tmp_path)


def test_a_reason_is_a_rejection_or_a_failure_not_both() -> None:
    assert not set(REJECTED_BY_METADATA) & set(FAILED)
