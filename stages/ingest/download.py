"""The downloads: img2dataset's components in one Ray task for each shard.

`img2dataset.download` distributes its work with `ray_distributor`, which starts all tasks at once and silently drops a
shard that fails. This module calls the components below it (Downloader, Resizer, ParquetSampleWriter) in its own tasks:
at most `ingest.processes` run at a time, errors are reported, and a shard is marked as done only by the driver, when
its task has returned. A task gets the rows of its shard from the driver and writes one file, whole or not at all, so
that it can be repeated on any node.
"""

from __future__ import annotations

import urllib.request
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from stages.contract import Reporter
from stages.data.bulk_files import fetched_files, working_folder
from stages.data.loopback import HOST, serve_folder
from stages.ingest.config import IngestConfig
from stages.ingest.fetch import PictureOpener
from stages.ingest.resizer import CheckedResizer
from stages.ingest.shards import EarlierOutput
from stages.ingest.url_list import UrlList
from stages.ray_tools.tasks import run_tasks
from stages.storage import StorePath, copy_file, is_remote

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


@dataclass(frozen=True, kw_only=True)
class Site:
    """The web of the micro world.

    Attributes:
        root: The folder with its files.
        port: The port that its URLs name. Nothing listens there: see `stages.data.loopback`.
    """

    root: StorePath
    port: int

    @contextmanager
    def served(self, urls: Sequence[str]) -> Iterator[Mapping[str, str]]:
        """Serve the files of some URLs while the block runs; yields their new place, as `PictureOpener` takes it.

        Files in a store are fetched beforehand: a store may be slow, and a downloader would give up on them.
        """
        start = f"http://{HOST}:{self.port}/"
        names = {url.removeprefix(start) for url in urls if url.startswith(start)}
        with fetched_files(self.root, sorted(names)) as root, serve_folder(root) as base:
            yield {start: f"{base}/"}


def download_shards(
    urls: UrlList,
    shards: StorePath,
    settings: IngestConfig,
    report: Reporter,
    earlier: EarlierOutput | None = None,
    site: Site | None = None,
) -> None:
    """Download the pictures of the list, except for rows that are settled in `earlier`.

    Shards that an interrupted call has finished are not downloaded again.

    Raises:
        StageError: A shard could not be downloaded.
    """
    sizes = urls.shard_sizes
    finished_before = {file.name for file in shards.glob("*.done")}
    missing = [number for number in range(len(sizes)) if mark(shards, number).name not in finished_before]
    done = sum(sizes) - sum(sizes[number] for number in missing)
    report.progress(done, sum(sizes), "downloading pictures")

    def finished(number: int, _: Any) -> None:
        nonlocal done
        mark(shards, number).write_bytes(b"")
        done += sizes[number]
        report.progress(done, sum(sizes), "downloading pictures")

    def arguments(number: int) -> tuple[Any, ...]:
        rows = urls.shard(number, columns=["sample_id", "url"])
        return rows, number, shards, settings, earlier and earlier.part(rows), site

    run_tasks(fetch_shard, arguments, missing, settings.processes, finished, SHARD)


def mark(shards: StorePath, number: int) -> StorePath:
    """The file that marks a shard as done."""
    return shards / f"{number:05d}.done"


def fetch_shard(
    rows: pa.Table,
    number: int,
    shards: StorePath,
    settings: IngestConfig,
    earlier: EarlierOutput | None = None,
    site: Site | None = None,
) -> None:
    """Download the rows of one shard (sample_id, url) with img2dataset into `shards/<number>.parquet`."""
    if earlier is not None:
        rows = rows.filter(pc.invert(pc.is_in(rows["sample_id"], value_set=earlier.settled_ids(rows["sample_id"]))))
    with working_folder(shards) as folder:
        if site is None:
            _download(rows, number, folder, PictureOpener(settings))
        else:
            with site.served(rows["url"].to_pylist()) as moved:
                _download(rows, number, folder, PictureOpener(settings, moved))
        if is_remote(shards):
            copy_file(folder / f"{number:05d}.parquet", shards / f"{number:05d}.parquet")


def _download(rows: pa.Table, number: int, folder: Path, opener: PictureOpener) -> None:
    """Leave `<number>.parquet` in a folder, beside img2dataset's statistics."""
    file = folder / f"{number:05d}.arrow"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is `ingest.max_pixels`
    urllib.request.install_opener(opener)
    try:
        make_downloader(folder, opener.settings).download_shard((number, str(file)))
    finally:
        urllib.request.install_opener(urllib.request.build_opener())  # Python's own
        file.unlink(missing_ok=True)


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
