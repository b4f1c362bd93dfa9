"""The downloads: img2dataset's components in one Ray task for each shard.

`img2dataset.download` distributes its work with `ray_distributor`, which starts all tasks at once and silently drops a
shard that fails. This module calls the components below it (Downloader, Resizer, ParquetSampleWriter) in its own tasks:
at most `ingest.processes` run at a time, errors are reported, and a shard is marked as done only by the driver, when
its task has returned. When a stage is killed, its workers live on for a few seconds and may finish shards full of
refused connections, because the stage's web server is gone. Such shards are not marked, and are downloaded again.
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
from stages.ingest.resizer import CheckedResizer
from stages.ingest.shards import settled_ids
from stages.ray_tools.placement import node_selector
from stages.ray_tools.tasks import run_tasks

#: The name of a shard in the errors of `run_tasks`.
SHARD = "shard {} of the list"

#: Options of img2dataset's Downloader that do not depend on the configuration.
_FIXED_OPTIONS: dict[str, Any] = {
    "save_caption": False,
    "extract_exif": False,
    "oom_shard_count": 5,
    "compute_hash": None,
    "verify_hash_type": None,
    "encode_format": "jpg",
    "retries": 0,  # `PictureOpener` retries, and checks the opt-outs
    "user_agent_token": None,
    "disallowed_header_directives": None,
}


def download_shards(
    urls_file: Path, shards: Path, settings: IngestConfig, earlier: Path | None, report: Reporter
) -> None:
    """Download the pictures of the list, except for rows that are settled in `earlier`.

    A shard is a row group of `urls_file`. Shards that an interrupted call has finished are not downloaded again.

    Raises:
        StageError: A shard could not be downloaded.
    """
    sizes = shard_sizes(urls_file)
    shards.mkdir(exist_ok=True)
    missing = [number for number in range(len(sizes)) if not mark(shards, number).exists()]
    done = sum(sizes) - sum(sizes[number] for number in missing)
    report.progress(done, sum(sizes), "downloading pictures")
    fetch = ray.remote(label_selector=node_selector())(fetch_shard)

    def finished(number: int, _: Any) -> None:
        nonlocal done
        mark(shards, number).touch()
        done += sizes[number]
        report.progress(done, sum(sizes), "downloading pictures")

    def start(number: int) -> Any:
        return fetch.remote(urls_file, number, shards, settings, earlier)

    run_tasks(start, missing, settings.processes, finished, SHARD)


def shard_sizes(urls_file: Path) -> list[int]:
    """The number of rows of each shard."""
    metadata = pq.read_metadata(urls_file)
    return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]


def mark(shards: Path, number: int) -> Path:
    """The file that marks a shard as done."""
    return shards / f"{number:05d}.done"


def fetch_shard(urls_file: Path, number: int, shards: Path, settings: IngestConfig, earlier: Path | None) -> None:
    """Download the rows of one shard with img2dataset into `shards/<number>.parquet`."""
    rows = pq.ParquetFile(urls_file).read_row_group(number, columns=["sample_id", "url"])
    if earlier is not None:
        settled = settled_ids(earlier, rows["sample_id"])
        rows = rows.filter(pc.invert(pc.is_in(rows["sample_id"], value_set=settled)))
    file = shards / f"{number:05d}.arrow"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is `ingest.max_pixels`
    urllib.request.install_opener(PictureOpener(settings))
    try:
        make_downloader(shards, settings).download_shard((number, str(file)))
    finally:
        urllib.request.install_opener(urllib.request.build_opener())  # Python's own


def make_downloader(shards: Path, settings: IngestConfig) -> Any:
    """img2dataset's Downloader with our limits. Its import takes seconds: it loads torch, wandb and albumentations."""
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
        output_folder=str(shards),
        column_list=["sample_id", "url"],
        timeout=settings.timeout_seconds,
        number_sample_per_shard=settings.samples_per_shard,
        **_FIXED_OPTIONS,
    )
