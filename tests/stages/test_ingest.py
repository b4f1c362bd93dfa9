"""Ingest: metadata good and bad, and real downloads by img2dataset on Ray from a real HTTP server."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import make_context
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from stages import filter as filter_stage
from stages import ingest
from stages.config import IngestConfig
from stages.datasets import read_dataset
from stages.ingest import finished_shards
from stages.ingest.metadata import metadata_files, read_url_list
from stages.ingest.shards import UPRIGHT, reason_of, upright_rgb
from stages.loopback import serve_folder
from stages.schemas import REJECTED, SAMPLES, content_id
from stages.stage import StageError

REPOSITORY = Path(__file__).resolve().parents[2]
DREAMBENCH = REPOSITORY / ".." / "shared" / "data" / "dreambench"


def write_metadata(file: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


cells = st.none() | st.sampled_from(["", " ", "http://h/1.jpg", "http://h/2.jpg", "ünïcode"])


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(cells, cells), min_size=1, max_size=20))
def test_every_row_is_listed_once_or_repeated_or_unusable(
    pairs: list[tuple[str | None, str | None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    columns = {
        "URL": pa.array([url for url, _ in pairs], pa.string()),
        "TEXT": pa.array([t for _, t in pairs], pa.string()),
    }
    file = tmp_path_factory.mktemp("metadata") / "rows.parquet"
    pq.write_table(pa.table(columns), file)
    usable = [(url, text) for url, text in pairs if url and url.strip() and text and text.strip()]
    if not usable:
        with pytest.raises(StageError, match=r"no row of .* has both a URL"):
            read_url_list([file], IngestConfig())
        return
    urls = read_url_list([file], IngestConfig())
    assert urls.rows["sample_id"].to_pylist() == sorted({content_id(*pair) for pair in usable})
    assert urls.repeated == len(usable) - urls.rows.num_rows
    assert urls.unusable.num_rows == len(pairs) - len(usable)
    assert set(urls.unusable_by_reason()) <= {"no_url", "no_caption"}


def test_of_repeated_rows_the_first_counts_and_absent_scores_are_null(tmp_path: Path) -> None:
    rows = [{"URL": "u", "TEXT": "t", "AESTHETIC_SCORE": 5.0}, {"URL": "u", "TEXT": "t", "AESTHETIC_SCORE": 6.0}]
    urls = read_url_list([write_metadata(tmp_path / "m.parquet", rows)], IngestConfig())
    row = urls.rows.to_pylist()[0]
    assert (row["aesthetic"], row["similarity"], urls.repeated) == (5.0, None, 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"url": "u", "TEXT": "t"}, r"lacks the column 'URL'; its columns are url, TEXT: .*--set ingest.url_column"),
        ({"URL": "u"}, "lacks the column 'TEXT'"),
        ({"URL": "u", "TEXT": 3}, r"'TEXT' .* must hold text, not int64"),
        ({"URL": "u", "TEXT": "t", "similarity": "x"}, r"'similarity' .* must hold numbers, not string"),
    ],
)
def test_a_column_that_is_missing_or_of_another_type_is_named(
    row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=message) as caught:
        read_url_list([write_metadata(tmp_path / "rows.parquet", [row])], IngestConfig())
    assert "\n" not in str(caught.value)


def test_metadata_that_is_missing_empty_or_no_parquet_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"there is no file or folder .*/missing"):
        metadata_files(tmp_path / "missing")
    with pytest.raises(StageError, match=r"holds no \*.parquet"):
        metadata_files(tmp_path)
    (tmp_path / "text.parquet").write_text("URL,TEXT\n")
    with pytest.raises(StageError, match="is not a Parquet file") as caught:
        read_url_list(metadata_files(tmp_path), IngestConfig())
    assert "\n" not in str(caught.value)
    empty = tmp_path / "empty.parquet"
    pq.write_table(pa.table({"URL": pa.array([], pa.string()), "TEXT": pa.array([], pa.string())}), empty)
    with pytest.raises(StageError, match="holds no rows"):
        read_url_list(metadata_files(empty), IngestConfig())


@pytest.mark.parametrize(("orientation", "words"), list(enumerate(UPRIGHT, start=2)))
def test_rotations_are_those_of_the_exif_standard(orientation: int, words: str) -> None:
    """img2dataset drops the tag, so that its words must lead to what Pillow makes of the number."""
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 2, 3), dtype=np.uint8)).resize((32, 48))
    exif = Image.Exif()
    exif[0x0112] = orientation
    tagged, plain = io.BytesIO(), io.BytesIO()
    pixels.save(tagged, "JPEG", exif=exif, quality=95)
    pixels.save(plain, "JPEG", quality=95)
    with Image.open(tagged) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture), np.float64)
    data, size = upright_rgb(plain.getvalue(), json.dumps({"Image Orientation": words}))
    with Image.open(io.BytesIO(data)) as fixed:
        assert fixed.size == size == expected.shape[1::-1]
        assert np.abs(np.asarray(fixed, np.float64) - expected).mean() < 3


def test_upright_colour_pictures_are_left_alone_and_grey_ones_get_colours() -> None:
    colour, grey = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (9, 8), "red").save(colour, "JPEG")
    Image.new("L", (9, 8), 77).save(grey, "JPEG")
    assert upright_rgb(colour.getvalue(), None) == (colour.getvalue(), (9, 8))
    with Image.open(io.BytesIO(upright_rgb(grey.getvalue(), "{}")[0])) as picture:
        assert picture.mode == "RGB"


def test_reasons() -> None:
    assert reason_of("failed_to_download", "HTTP Error 404: Not Found") == "download"
    assert reason_of("failed_to_resize", "image too small") == "too_small"
    assert reason_of("failed_to_resize", "aspect ratio too large") == "aspect_ratio"
    assert reason_of("failed_to_resize", "Image decoding error") == "decode"
    assert reason_of("lost", "") == "lost"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A site with pictures of all kinds: its address and its folder."""
    site = tmp_path / "site"
    site.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        noise = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        noise.resize((160, 120)).save(site / f"good{number}.jpg", quality=90)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (160, 100), "blue").save(site / "turned.jpg", exif=turned)
    Image.new("L", (100, 100), 128).save(site / "grey.jpg")
    Image.new("RGBA", (100, 100), (255, 0, 0, 0)).save(site / "clear.png")
    Image.new("RGB", (10, 10)).save(site / "tiny.jpg")
    Image.new("RGB", (400, 100)).save(site / "wide.jpg")
    (site / "text.jpg").write_text("<html>")
    (site / "empty.jpg").write_bytes(b"")
    whole = (site / "good0.jpg").read_bytes()
    (site / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with serve_folder(site, 0) as base:
        yield base, site


@pytest.mark.slow
def test_every_url_becomes_a_sample_or_a_reason_also_after_an_interruption(
    web: tuple[str, Path], tmp_path: Path, ray_cluster: str
) -> None:
    base, site = web
    names = sorted(file.name for file in site.iterdir())
    rows: list[dict[str, Any]] = [
        {"URL": f"{base}/{name}", "TEXT": f"a photo of {name}", "AESTHETIC_SCORE": 5.5} for name in names
    ]
    rows += [rows[3], {"URL": f"{base}/missing.jpg", "TEXT": "gone"}, {"URL": "http://127.0.0.1:1/x.jpg", "TEXT": "no"}]
    rows += [{"URL": None, "TEXT": "no address"}, {"URL": f"{base}/good0.jpg", "TEXT": None}]
    file = write_metadata(tmp_path / "metadata.parquet", rows)
    changes = {"metadata": str(file), "samples_per_shard": 5, "threads": 4, "timeout_seconds": 5}
    events: list[Any] = []
    context = make_context(tmp_path / "first", events=events, ingest=changes)
    result = ingest.run(context)
    samples, rejected = (
        read_dataset(context.output / "samples", SAMPLES),
        read_dataset(context.output / "rejected", REJECTED),
    )
    assert result.rows == {"samples": samples.num_rows, "rejected": rejected.num_rows} == {"samples": 11, "rejected": 9}
    assert result.metrics["repeated_rows"] == 1
    reasons = {row["url"].rsplit("/", 1)[-1]: row["reason"] for row in rejected.to_pylist()}
    assert reasons == {
        "missing.jpg": "download", "x.jpg": "download",
        "text.jpg": "decode", "empty.jpg": "decode", "cut.jpg": "decode",
        "tiny.jpg": "too_small", "wide.jpg": "aspect_ratio", "": "no_url", "good0.jpg": "no_caption",
    }  # fmt: skip
    assert samples["sample_id"].to_pylist() == sorted(samples["sample_id"].to_pylist())
    by_name = {row["url"].rsplit("/", 1)[1]: row for row in samples.to_pylist()}
    for name, row in by_name.items():
        with Image.open(io.BytesIO(row["picture"])) as picture:
            assert (picture.mode, picture.size) == ("RGB", (row["width"], row["height"])), name
        assert row["sample_id"] == content_id(row["url"], row["caption"])
        assert (row["aesthetic"], row["similarity"]) == (5.5, None)
    assert [by_name["turned.jpg"][key] for key in ("width", "height", "original_width", "original_height")] == [
        64,
        102,
        100,
        160,
    ]
    with Image.open(io.BytesIO(by_name["clear.png"]["picture"])) as picture:
        assert picture.getpixel((50, 50)) == (255, 255, 255)

    shards = context.scratch / "shards"
    finished = finished_shards(shards)
    assert sum(finished.values()) == len(names) + 2
    # What a SIGKILL leaves: one shard without statistics and half a file, one whose statistics are half written, and
    # one that a worker finished after the stage, and the server with it, was gone.
    (shards / "00001_stats.json").unlink()
    (shards / "00001.parquet").write_bytes(b"")
    (shards / "00002_stats.json").write_text('{"count": ')
    (shards / "00003.confirmed").unlink()
    (shards / "00003.parquet").write_bytes(b"all refused")
    kept = (shards / "00000.parquet").stat().st_mtime_ns
    again = make_context(tmp_path / "again", ingest=changes)
    (again.scratch).rmdir()
    context.scratch.rename(again.scratch)
    assert ingest.run(again) == result
    assert read_dataset(again.output / "samples", SAMPLES) == samples
    assert read_dataset(again.output / "rejected", REJECTED).drop_columns("detail") == rejected.drop_columns("detail")
    assert (again.scratch / "shards" / "00000.parquet").stat().st_mtime_ns == kept


@pytest.mark.slow
def test_a_host_that_refuses_everything_stops_the_run_and_is_asked_again_next_time(
    web: tuple[str, Path], tmp_path: Path, ray_cluster: str
) -> None:
    refused = [{"URL": f"http://127.0.0.1:1/{number}.jpg", "TEXT": f"picture {number}"} for number in range(4)]
    file = write_metadata(tmp_path / "metadata.parquet", refused)
    context = make_context(tmp_path / "out", ingest={"metadata": str(file), "retries": 0})
    with pytest.raises(StageError, match=r"4 of 4 pictures could not be had, 4 of them because of .*refused"):
        ingest.run(context)
    assert not finished_shards(context.scratch / "shards")


@pytest.mark.slow
def test_photographs_that_nobody_made_for_this_project(tmp_path: Path, ray_cluster: str) -> None:
    """Ingest, then filter, on DreamBench behind a loopback server, by configuration alone."""
    if not DREAMBENCH.is_dir():
        pytest.skip(f"the photographs of DreamBench are not at {DREAMBENCH}")
    files = sorted(DREAMBENCH.glob("*/*.jpg"))[:24]
    with serve_folder(DREAMBENCH, 0) as base:
        rows = [
            {"URL": f"{base}/{file.parent.name}/{file.name}", "TEXT": f"a photo of a {file.parent.name}"}
            for file in files
        ]
        changes = {"metadata": str(write_metadata(tmp_path / "metadata.parquet", rows)), "samples_per_shard": 12}
        fetched = make_context(tmp_path / "ingest", ingest=changes)
        assert ingest.run(fetched).rows == {"samples": len(files), "rejected": 0}
    with pytest.raises(StageError, match=r"'punsafe'.*--set filter.max_unsafe=null"):
        filter_stage.run(make_context(tmp_path / "refused", inputs={"ingest": fetched.output}))
    no_scores = dict.fromkeys(("min_aesthetic", "min_similarity", "max_unsafe", "max_watermark"))
    kept = make_context(tmp_path / "filter", inputs={"ingest": fetched.output}, filter=no_scores)
    assert filter_stage.run(kept).rows["samples"] == len(files)
