"""Stage `ingest`: pictures from the web by img2dataset, on Ray.

img2dataset works on shards of the list of URLs in `context.scratch`; it has finished a shard when its `_stats.json` is
there. This stage confirms finished shards with a mark of its own as it goes, and after an interruption only confirmed
ones count: workers outlive a killed stage by a few seconds, in which they finish shards full of refused connections to
a loopback server that is no more. The list is sorted by sample id, so that a shard is a range of ids and
the stage's output, written shard by shard, is in order. The list itself is held in memory; the pictures are not.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from stages.config import IngestConfig
from stages.datasets import read_dataset, write_dataset
from stages.ingest.metadata import UrlList, metadata_files, read_url_list
from stages.ingest.shards import ShardSummary, convert_shard
from stages.loopback import serve_folder
from stages.schemas import LAION_SCORES, REJECTED
from stages.stage import Reporter, StageContext, StageError, StageResult

logger = logging.getLogger(__name__)
_POLL_SECONDS = 0.5


def run(context: StageContext) -> StageResult:
    """Write `samples/` and `rejected/`."""
    settings = context.config.ingest
    if settings.metadata is None:
        source = context.inputs["microworld"] / "metadata"
    else:
        source = Path(settings.metadata).expanduser().resolve()
    urls = read_url_list(metadata_files(source), settings)
    scratch = context.scratch.resolve()
    urls_file = scratch / "urls.parquet"
    pq.write_table(urls.rows, urls_file)
    shards = scratch / "shards"
    with ExitStack() as stack:
        if settings.metadata is None:
            site = json.loads((context.inputs["microworld"] / "site.json").read_text())
            stack.enter_context(serve_folder(context.inputs["microworld"] / site["root"], site["port"]))
        download_shards(urls_file, shards, urls.rows.num_rows, settings, context.report)
    context.report.progress(urls.rows.num_rows, urls.rows.num_rows, "sorting what came back")
    summaries = _convert_shards(scratch, context.output.resolve(), urls, settings)
    _refuse_failures(summaries, shards, settings)
    rejected = sum((summary.rejected for summary in summaries), Counter[str]()) + Counter(urls.unusable_by_reason())
    return StageResult(
        rows={"samples": sum(summary.samples for summary in summaries), "rejected": rejected.total()},
        metrics={
            "repeated_rows": float(urls.repeated),
            **{f"rejected_{reason}": float(count) for reason, count in sorted(rejected.items())},
        },
    )


def download_shards(urls_file: Path, shards: Path, rows: int, settings: IngestConfig, report: Reporter) -> None:
    """Let img2dataset fetch every picture of the list; go on where an earlier call was interrupted.

    Raises:
        StageError: Shards are still missing after a second try. (img2dataset drops a shard that fails without a word.)
    """
    total = math.ceil(rows / settings.samples_per_shard)
    shards.mkdir(exist_ok=True)
    forget_unconfirmed(shards)
    for _ in range(2):
        if len(finished_shards(shards)) == total:
            return
        with _progress_of(shards, rows, report):
            _call_img2dataset(urls_file, shards, settings)
        confirm_finished(shards)
    missing = sorted(set(range(total)) - set(finished_shards(shards)))
    if missing:
        raise StageError(
            f"img2dataset did not finish {len(missing)} of {total} shards (the first is number {missing[0]}); its "
            "reason is in this stage's log; the same command tries them again."
        )


def _call_img2dataset(urls_file: Path, shards: Path, settings: IngestConfig) -> None:
    import img2dataset  # seconds: it brings torch, wandb and albumentations

    interrupt = signal.getsignal(signal.SIGINT)  # img2dataset installs its own handler
    try:
        img2dataset.download(
            url_list=str(urls_file),
            input_format="parquet",
            url_col="url",
            caption_col="caption",
            save_additional_columns=["sample_id", *LAION_SCORES.values()],
            output_folder=str(shards),
            output_format="parquet",
            distributor="ray",
            number_sample_per_shard=settings.samples_per_shard,
            thread_count=settings.threads,
            image_size=settings.image_size,
            resize_mode="keep_ratio",
            resize_only_if_bigger=True,
            min_image_size=settings.min_image_size,
            max_aspect_ratio=settings.max_aspect_ratio,
            timeout=settings.timeout_seconds,
            retries=settings.retries,
            compute_hash=None,
            incremental_mode="incremental",
        )
    finally:
        signal.signal(signal.SIGINT, interrupt)


def finished_shards(shards: Path) -> dict[int, int]:
    """The numbers of the shards that img2dataset has finished, with their rows."""
    finished = {}
    for file in shards.glob("*_stats.json"):
        try:
            finished[int(file.name.split("_")[0])] = int(json.loads(file.read_text())["count"])
        except json.JSONDecodeError:
            logger.debug("%s is being written, or was when its process ended", file)
    return finished


def confirm_finished(shards: Path) -> int:
    """Mark the shards that are finished now, while this stage is alive; return how many rows they cover."""
    finished = finished_shards(shards)
    for number in finished:
        _mark(shards, number).touch()
    return sum(finished.values())


def forget_unconfirmed(shards: Path) -> None:
    """Remove the statistics of all shards but the confirmed ones: img2dataset takes their presence for success."""
    finished = finished_shards(shards)
    for file in shards.glob("*_stats.json"):
        number = int(file.name.split("_")[0])
        if number not in finished or not _mark(shards, number).exists():
            file.unlink()


def _mark(shards: Path, number: int) -> Path:
    return shards / f"{number:05d}.confirmed"


@contextmanager
def _progress_of(shards: Path, rows: int, report: Reporter) -> Iterator[None]:
    """Confirm shards as they are finished, and report how many rows they cover, from a thread of its own."""
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(_POLL_SECONDS):
            report.progress(confirm_finished(shards), rows, "downloading pictures")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _convert_shards(scratch: Path, output: Path, urls: UrlList, settings: IngestConfig) -> list[ShardSummary]:
    """Write `samples`, one part a shard, and `rejected`, together with the rows that never were in a shard."""
    convert = ray.remote(convert_shard)
    total = math.ceil(urls.rows.num_rows / settings.samples_per_shard)
    summaries = ray.get(
        [convert.remote(scratch, number, settings.samples_per_shard, output / "samples") for number in range(total)]
    )
    rejected = read_dataset(scratch / "rejected", REJECTED)
    write_dataset(output / "rejected", pa.concat_tables([rejected, urls.unusable]), REJECTED)
    return list(summaries)


def _refuse_failures(summaries: list[ShardSummary], shards: Path, settings: IngestConfig) -> None:
    """Stop when too few pictures came; forget the shards, so that the same command asks the hosts again."""
    samples = sum(summary.samples for summary in summaries)
    failures = sum((summary.details for summary in summaries), Counter[str]())
    rows = samples + failures.total()
    if samples and failures.total() <= settings.max_failed_share * rows:
        return
    shutil.rmtree(shards)
    reason, count = failures.most_common(1)[0]
    raise StageError(
        f"{failures.total()} of {rows} pictures could not be had, {count} of them because of {reason!r}; check the "
        f"metadata's URLs and the network (ingest.max_failed_share allows a share of {settings.max_failed_share:g})."
    )
