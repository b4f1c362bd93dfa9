"""The stage ingest: real downloads by img2dataset on Ray, from real HTTP servers, good and hostile."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stages.contract import StageContext, StageError, StageResult
from stages.data.datasets import read_dataset
from stages.data.loopback import serve_folder
from stages.data.schemas import REJECTED, SAMPLES, content_id
from stages.filter import stage as filter_stage
from stages.ingest import stage as ingest
from stages.ingest.outcomes import FAILED, check_failed_share, check_sum, outcome_table, reason_of
from stages.storage import StorePath, move_folder, remove
from tests.support.contexts import make_context
from tests.support.hostile_samples import SETTINGS
from tests.support.hostile_web import CAPTIONS, LIMITS, hostile_rows, hostile_server

REPOSITORY = Path(__file__).resolve().parents[3]
DREAMBENCH = REPOSITORY / ".." / "shared" / "data" / "dreambench"


def write_metadata(file: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def outcome(context: StageContext) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The samples, the rejected and the failed rows."""
    folder = context.output
    return (
        read_dataset(folder / "samples", SAMPLES),
        read_dataset(folder / "rejected", REJECTED),
        read_dataset(folder / "failed", REJECTED),
    )


def test_reasons_are_ours_or_derived_from_img2datasets_messages() -> None:
    assert reason_of("failed_to_download", "not_found: HTTP 404") == ("not_found", "HTTP 404")
    assert reason_of("failed_to_download", "unknown url type: ''") == ("bad_url", "unknown url type: ''")
    assert reason_of("failed_to_resize", "too_many_pixels: 9 x 9 > 1") == ("too_many_pixels", "9 x 9 > 1")
    assert reason_of("failed_to_resize", "image too small") == ("too_small", "image too small")
    assert reason_of("failed_to_resize", "aspect ratio too large")[0] == "aspect_ratio"
    assert reason_of("failed_to_resize", "Image decoding error")[0] == "decode"
    assert reason_of(None, "unknown")[0] == "lost"


def test_rows_that_do_not_add_up_are_refused() -> None:
    rejected, failed = Counter(decode=2, too_small=1), Counter(dns=4)
    check_sum(10, 3, rejected, failed)
    with pytest.raises(StageError, match="10 in the metadata, but 2 kept, 3 rejected and 4 failed"):
        check_sum(10, 2, rejected, failed)
    assert outcome_table(3, rejected, failed) == [
        ("kept", "", "3", "30.0 %"),
        ("rejected", "decode", "2", "20.0 %"),
        ("rejected", "too_small", "1", "10.0 %"),
        ("failed", "dns", "4", "40.0 %"),
    ]
    check_failed_share(10, 3, rejected, failed, 0.4)
    with pytest.raises(StageError, match=r"4 of 10 rows have failed .*\(dns 4; ingest.max_failed_share allows 0.3\)"):
        check_failed_share(10, 3, rejected, failed, 0.3)
    with pytest.raises(StageError, match=r"3 were rejected \(decode 2, too_small 1; none was kept\)"):
        check_failed_share(3, 0, rejected, Counter(), 1.0)


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
    Image.new("RGBA", (100, 100), (255, 0, 0, 0)).save(site / "clear.png")
    Image.new("RGB", (10, 10)).save(site / "tiny.jpg")
    (site / "text.jpg").write_text("<html>")
    with serve_folder(site) as base:
        yield base, site


@pytest.mark.slow
def test_every_url_has_one_outcome_also_after_an_interruption_and_a_retry_downloads_failed_rows(
    web: tuple[str, Path], tmp_path: Path, ray_cluster: str
) -> None:
    base, site = web
    names = sorted(file.name for file in site.iterdir())
    rows: list[dict[str, Any]] = [
        {"URL": f"{base}/{name}", "TEXT": f"a photo of {name}", "AESTHETIC_SCORE": 5.5} for name in names
    ]
    rows += [rows[3], {"URL": f"{base}/missing.jpg", "TEXT": "gone"}, {"URL": "http://127.0.0.1:1/x.jpg", "TEXT": "no"}]
    rows += [{"URL": None, "TEXT": "no address"}, {"URL": f"{base}/good9.jpg", "TEXT": None}]
    file = write_metadata(tmp_path / "metadata.parquet", rows)
    changes = {"metadata": str(file), "samples_per_shard": 5, "threads": 4, "allow_private_addresses": True}
    events: list[Any] = []
    context = make_context(tmp_path / "first", events=events, ingest=changes)
    result = ingest.run(context)
    samples, rejected, failed = outcome(context)
    assert result.rows == {"samples": 10, "rejected": 5, "failed": 2}
    assert result.metrics["metadata_rows"] == len(rows) == samples.num_rows + rejected.num_rows + failed.num_rows
    reasons = {row["url"].rsplit("/", 1)[-1]: row["reason"] for row in (rejected.to_pylist() + failed.to_pylist())}
    assert reasons == {
        "missing.jpg": "not_found", "x.jpg": "connection", "text.jpg": "wrong_type", "tiny.jpg": "too_small",
        names[3]: "duplicate_url", "": "no_url", "good9.jpg": "no_caption",
    }  # fmt: skip
    (table,) = [event["rows"] for event in events if event["event"] == "table"]
    assert table[:2] == [["outcome", "reason", "rows", "share"], ["kept", "", "10", "58.8 %"]]
    assert samples["sample_id"].to_pylist() == sorted(samples["sample_id"].to_pylist())
    by_name = {row["url"].rsplit("/", 1)[1]: row for row in samples.to_pylist()}
    for name, row in by_name.items():
        with Image.open(io.BytesIO(row["picture"])) as picture:
            assert (picture.mode, picture.size) == ("RGB", (row["width"], row["height"])), name
        assert row["sample_id"] == content_id(row["url"], row["caption"])
        assert (row["aesthetic"], row["similarity"]) == (5.5, None)
    sizes = [by_name["turned.jpg"][key] for key in ("width", "height", "original_width", "original_height")]
    assert sizes == [64, 102, 100, 160]
    with Image.open(io.BytesIO(by_name["clear.png"]["picture"])) as picture:
        assert picture.getpixel((50, 50)) == (255, 255, 255)
    _resume(context, make_context(tmp_path / "again", ingest=changes), result)
    _another_list(rows[:4], tmp_path / "again", changes)
    _retry(site, context.output, changes, tmp_path)


def _resume(context: StageContext, again: StageContext, result: StageResult) -> None:
    """A SIGKILL leaves a shard with half a file and no mark, and one that a worker finished without the server."""
    shards = context.scratch / "shards"
    (shards / "00001.done").unlink()
    (shards / "00001.parquet").write_bytes(b"")
    (shards / "00002.done").unlink()
    kept = (shards / "00000.parquet").stat().st_mtime_ns
    remove(again.scratch)
    move_folder(context.scratch, again.scratch)
    assert ingest.run(again) == result
    for before, after in zip(outcome(context), outcome(again), strict=True):
        assert after == before
    assert (again.scratch / "shards" / "00000.parquet").stat().st_mtime_ns == kept


def _another_list(rows: list[dict[str, Any]], folder: Path, changes: dict[str, Any]) -> None:
    """The metadata has changed since the interruption."""
    file = write_metadata(folder / "fewer.parquet", rows)
    shutil.rmtree(folder / "output")  # as the runner does
    found = ingest.run(make_context(folder, ingest=changes | {"metadata": str(file)}))
    assert found.rows == {"samples": 4, "rejected": 0, "failed": 0}


def _retry(site: Path, earlier: StorePath, changes: dict[str, Any], tmp_path: Path) -> None:
    """`ingest.retry=failed` downloads only failed rows; the others are copied byte for byte."""
    retry = changes | {"retry": "failed"}
    with pytest.raises(StageError, match=r"retry=failed needs an earlier output"):
        ingest.run(make_context(tmp_path / "none", ingest=retry))
    with pytest.raises(StageError, match=r"made with other settings: ingest.image_size was 64"):
        ingest.run(make_context(tmp_path / "other", previous=earlier, ingest=retry | {"image_size": 32}))
    old_samples = read_dataset(earlier / "samples", SAMPLES)
    (site / "good7.jpg").rename(site / "missing.jpg")  # the missing picture appears; the downloaded ones are kept
    for file in site.glob("*"):
        if file.name != "missing.jpg":
            file.unlink()
    context = make_context(tmp_path / "retry", previous=earlier, ingest=retry)
    result = ingest.run(context)
    samples, rejected, failed = outcome(context)
    assert result.rows == {"samples": 11, "rejected": 5, "failed": 1}
    assert failed["reason"].to_pylist() == ["connection"]
    assert rejected == read_dataset(earlier / "rejected", REJECTED)
    new = {row["url"]: row for row in samples.to_pylist()}
    assert [row for url, row in new.items() if not url.endswith("missing.jpg")] == old_samples.to_pylist()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "private", "message"),
    [
        ("http://127.0.0.1:1/{}.jpg", True, r"4 of 4 rows have failed and 0 were rejected \(connection 4; none was"),
        ("http://localhost/{}.jpg", False, r"0 of 4 rows have failed and 4 were rejected \(private_address 4; none"),
    ],
)
def test_a_run_that_keeps_nothing_stops_and_downloads_again_next_time(
    url: str, private: bool, message: str, tmp_path: Path, ray_cluster: str
) -> None:
    rows = [{"URL": url.format(number), "TEXT": f"picture {number}"} for number in range(4)]
    file = write_metadata(tmp_path / "metadata.parquet", rows)
    context = make_context(tmp_path / "out", ingest={"metadata": str(file), "allow_private_addresses": private})
    with pytest.raises(StageError, match=message):
        ingest.run(context)
    assert not (context.scratch / "shards").exists()


@pytest.mark.slow
def test_of_a_hostile_web_no_row_is_lost(tmp_path: Path, ray_cluster: str) -> None:
    """Other sizes, with times and memory: `python -m tests.support.hostile_web 100000`."""
    count = 10_000
    with hostile_server() as server:
        table, expected = hostile_rows(count, server.base)
        pq.write_table(table, tmp_path / "hostile.parquet")
        settings = {"metadata": str(tmp_path / "hostile.parquet"), "allow_private_addresses": True}
        context = make_context(tmp_path, ingest=settings | LIMITS | {"threads": 32, "samples_per_shard": count // 5})
        result = ingest.run(context)
    samples, rejected, failed = outcome(context)
    found = Counter(rejected["reason"].to_pylist() + failed["reason"].to_pylist())
    assert found | {"": samples.num_rows} == expected
    assert set(failed["reason"].to_pylist()) <= set(FAILED)
    assert result.metrics["metadata_rows"] == count == samples.num_rows + rejected.num_rows + failed.num_rows
    assert set(samples["caption"].to_pylist()) == {caption.lstrip("\ufeff") for caption in CAPTIONS}
    filtered = make_context(tmp_path / "filter", inputs={"ingest": context.output}, filter=SETTINGS)
    rows = filter_stage.run(filtered).rows
    assert rows["samples"] > 0
    assert rows["samples"] + rows["rejected"] == samples.num_rows


@pytest.mark.slow
def test_photographs_of_dreambench(tmp_path: Path, ray_cluster: str) -> None:
    """Ingest, then filter, on DreamBench behind a loopback server, by configuration alone."""
    if not DREAMBENCH.is_dir():
        pytest.skip(f"the photographs of DreamBench are not at {DREAMBENCH}")
    files = sorted(DREAMBENCH.glob("*/*.jpg"))[:24]
    with serve_folder(DREAMBENCH) as base:
        rows = [
            {"URL": f"{base}/{file.parent.name}/{file.name}", "TEXT": f"a photo of a {file.parent.name}"}
            for file in files
        ]
        changes = {"metadata": str(write_metadata(tmp_path / "metadata.parquet", rows)), "samples_per_shard": 12}
        fetched = make_context(tmp_path / "ingest", ingest=changes | {"allow_private_addresses": True})
        assert ingest.run(fetched).rows == {"samples": len(files), "rejected": 0, "failed": 0}
    with pytest.raises(StageError, match=r"'punsafe'.*--set filter.max_unsafe=null"):
        filter_stage.run(make_context(tmp_path / "refused", inputs={"ingest": fetched.output}))
    no_scores = dict.fromkeys(("min_aesthetic", "min_similarity", "max_unsafe", "max_watermark"))
    kept = make_context(tmp_path / "filter", inputs={"ingest": fetched.output}, filter=no_scores)
    assert filter_stage.run(kept).rows["samples"] == len(files)
