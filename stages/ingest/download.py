"""The downloads: img2dataset's pieces, a Ray task a shard.

`img2dataset.download` shares its work out by `ray_distributor`, which starts all tasks at once and drops a shard that
fails without a word. This module calls the pieces below it (Downloader, Resizer, ParquetSampleWriter) in tasks of its
own: at most `ingest.processes` at a time, an error is an error, and a shard counts only when the task that downloaded
it has told this process so. Workers outlive a killed stage by a few seconds, in which they finish shards full of
refused connections to a loopback server that is no more: those are not marked, and done again.
"""

from __future__ import annotations

import urllib.request
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from PIL import Image

from stages.contract import Reporter
from stages.ingest.config import IngestConfig
from stages.ingest.fetch import PictureOpener
from stages.ingest.pictures import CheckedResizer
from stages.ingest.shards import settled_ids
from stages.ray_tools.tasks import run_tasks

#: What `run_tasks` is to call a shard.
SHARD = "shard {} of the list"


def download_shards(
    urls_file: Path, shards: Path, settings: IngestConfig, earlier: Path | None, report: Reporter
) -> None:
    """Fetch every picture of the list, but for rows that are settled in `earlier`; go on where a call was interrupted.

    A shard is a row group of `urls_file`.

    Raises:
        StageError: A shard could not be done.
    """
    sizes = shard_sizes(urls_file)
    shards.mkdir(exist_ok=True)
    fetch = ray.remote(fetch_shard)
    done = sum(size for number, size in enumerate(sizes) if mark(shards, number).exists())

    def finished(number: int, _: Any) -> None:
        nonlocal done
        mark(shards, number).touch()
        done += sizes[number]
        report.progress(done, sum(sizes), "downloading pictures")

    report.progress(done, sum(sizes), "downloading pictures")
    missing = [number for number in range(len(sizes)) if not mark(shards, number).exists()]
    run_tasks(
        lambda number: fetch.remote(urls_file, number, shards, settings, earlier),
        missing,
        settings.processes,
        finished,
        SHARD,
    )


def shard_sizes(urls_file: Path) -> list[int]:
    """Rows by shard."""
    metadata = pq.read_metadata(urls_file)
    return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]


def mark(shards: Path, number: int) -> Path:
    """The file that says that a shard is whole."""
    return shards / f"{number:05d}.done"


def fetch_shard(urls_file: Path, number: int, shards: Path, settings: IngestConfig, earlier: Path | None) -> None:
    """Let img2dataset download the rows of one shard into `shards/<number>.parquet`, which replaces an earlier one."""
    rows = pq.ParquetFile(urls_file).read_row_group(number, columns=["sample_id", "url"])
    if earlier is not None:
        settled = settled_ids(earlier, rows["sample_id"])
        rows = rows.filter(pc.invert(pc.is_in(rows["sample_id"], value_set=settled)))
    file = shards / f"{number:05d}.arrow"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the budget is `ingest.max_pixels`
    urllib.request.install_opener(PictureOpener(settings))
    try:
        make_downloader(shards, settings).download_shard((number, str(file)))
    finally:
        urllib.request.install_opener(urllib.request.build_opener())  # Python's own


def make_downloader(shards: Path, settings: IngestConfig) -> Any:
    """img2dataset's, with our limits. Importing it takes seconds: it brings torch, wandb and albumentations."""
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import ParquetSampleWriter

    resizer = Resizer(
        image_size=settings.image_size,
        resize_mode="keep_ratio",
        resize_only_if_bigger=True,
        min_image_size=settings.min_image_size,
        max_aspect_ratio=settings.max_aspect_ratio,
    )
    return Downloader(
        sample_writer_class=ParquetSampleWriter,
        resizer=CheckedResizer(resizer, settings.max_pixels),
        thread_count=settings.threads,
        save_caption=False,
        extract_exif=False,
        output_folder=str(shards),
        column_list=["sample_id", "url"],
        timeout=settings.timeout_seconds,
        number_sample_per_shard=settings.samples_per_shard,
        oom_shard_count=5,
        compute_hash=None,
        verify_hash_type=None,
        encode_format="jpg",
        retries=0,  # PictureOpener's work, and so are the opt-outs
        user_agent_token=None,
        disallowed_header_directives=None,
    )
