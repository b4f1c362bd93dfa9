"""Stage `ingest`: pictures from the web by img2dataset, on Ray.

Every row of the metadata ends in exactly one of three datasets: `samples`, `rejected` (we do not want it) or `failed`
(it could not be had this time), the last two with a reason from `stages.ingest.outcomes`. The list of URLs is sorted by
sample id and cut into shards, so that a shard is a range of ids and the output, written shard by shard, is in order.
Half-done work lies in `context.scratch`. The list itself is held in memory; the pictures are not.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from stages.config import IngestConfig
from stages.datasets import dataset_files, read_dataset, write_dataset
from stages.ingest.download import download_shards, run_tasks, shard_sizes
from stages.ingest.metadata import metadata_files, read_url_list
from stages.ingest.outcomes import check_sum, outcome_table, refuse_failures
from stages.ingest.shards import ShardSummary, convert_shard
from stages.loopback import serve_folder
from stages.schemas import REJECTED
from stages.stage import StageContext, StageError, StageResult

#: In the output: what its pictures have in common. Another output may be merged with it only when it has the same.
_RULES_FILE = "picture_rules.json"
_PICTURE_RULES = ("image_size", "min_image_size", "max_aspect_ratio", "max_pixels")


def run(context: StageContext) -> StageResult:
    """Write `samples/`, `rejected/` and `failed/`."""
    settings, scratch, output = context.config.ingest, context.scratch.resolve(), context.output.resolve()
    earlier = _earlier_output(context) if settings.retry else None
    source = settings.metadata or str(context.inputs["microworld"] / "metadata")
    urls = read_url_list(metadata_files(source), settings)
    _write_list(scratch, urls.rows, settings)
    with _microworld_served(context):
        download_shards(scratch / "urls.parquet", scratch / "shards", settings, earlier, context.report)
    context.report.progress(urls.rows.num_rows, urls.rows.num_rows, "sorting what came back")
    summaries = _convert_shards(scratch, output, earlier, settings)
    _join(scratch / "rejected", output / "rejected", urls.rejected)
    _join(scratch / "failed", output / "failed", REJECTED.empty_table())
    (output / _RULES_FILE).write_text(json.dumps(_picture_rules(settings)) + "\n")
    rejected = sum((summary.rejected for summary in summaries), urls.rejected_by_reason)
    failed = sum((summary.failed for summary in summaries), Counter[str]())
    kept = _written(output / "samples")
    check_sum(urls.total, kept, rejected, failed)
    check_sum(urls.total, kept, Counter(all=_written(output / "rejected")), Counter(all=_written(output / "failed")))
    context.report.table(("outcome", "reason", "rows", "share"), outcome_table(kept, rejected, failed))
    try:
        refuse_failures(urls.total, kept, rejected, failed, settings.max_failed_share)
    except StageError:
        shutil.rmtree(scratch / "shards")  # the same command asks the hosts again
        raise
    return _result(urls.total, kept, rejected, failed)


def _result(total: int, kept: int, rejected: Counter[str], failed: Counter[str]) -> StageResult:
    """The counts, for the manifest and the tracker."""
    return StageResult(
        rows={"samples": kept, "rejected": rejected.total(), "failed": failed.total()},
        metrics={
            "metadata_rows": float(total),
            **{f"rejected_{reason}": float(count) for reason, count in sorted(rejected.items())},
            **{f"failed_{reason}": float(count) for reason, count in sorted(failed.items())},
        },
    )


def _earlier_output(context: StageContext) -> Path:
    """The output whose failed rows are to be asked for again.

    Raises:
        StageError: There is none, or its pictures were made by other rules.
    """
    earlier = context.previous
    if earlier is None:
        raise StageError("ingest.retry=failed needs an output whose failed rows it can ask for: run without it first.")
    if not (earlier / "failed").is_dir():
        raise StageError(f"ingest.retry=failed: {earlier} does not tell its failed rows; make it again without retry.")
    was, now = json.loads((earlier / _RULES_FILE).read_text()), _picture_rules(context.config.ingest)
    changed = ", ".join(f"ingest.{key} was {was.get(key)}" for key in now if was.get(key) != now[key])
    if changed:
        raise StageError(f"ingest.retry=failed goes on with {earlier}, which was made by other rules: {changed}.")
    return earlier.resolve()


def _picture_rules(settings: IngestConfig) -> dict[str, float]:
    return {key: getattr(settings, key) for key in _PICTURE_RULES}


def _write_list(scratch: Path, rows: pa.Table, settings: IngestConfig) -> None:
    """Write the list that is cut into shards; what was downloaded for another list is of no use."""
    file = scratch / "urls.parquet"
    if file.exists() and not pq.read_table(file).equals(rows):
        shutil.rmtree(scratch / "shards", ignore_errors=True)
    pq.write_table(rows, file, row_group_size=settings.samples_per_shard)


@contextmanager
def _microworld_served(context: StageContext) -> Iterator[None]:
    """While the block runs, the microworld's URLs are answered, if it is its pictures that are wanted."""
    if context.config.ingest.metadata is not None:
        yield
        return
    world = context.inputs["microworld"]
    site = json.loads((world / "site.json").read_text())
    with serve_folder(world / site["root"], site["port"]):
        yield


def _convert_shards(scratch: Path, output: Path, earlier: Path | None, settings: IngestConfig) -> list[ShardSummary]:
    """Write `samples`, one part a shard, and the parts of `rejected` and `failed` into `scratch`."""
    for parts in ("rejected", "failed"):
        shutil.rmtree(scratch / parts, ignore_errors=True)  # an interrupted call's
    convert = ray.remote(convert_shard)
    summaries: dict[int, ShardSummary] = {}
    run_tasks(
        lambda number: convert.remote(scratch, number, output / "samples", earlier),
        range(len(shard_sizes(scratch / "urls.parquet"))),
        settings,
        summaries.__setitem__,
    )
    return [summaries[number] for number in sorted(summaries)]


def _join(parts: Path, folder: Path, more: pa.Table) -> None:
    """Write the rows of `parts`, and some more, as one dataset in the order of their ids."""
    write_dataset(folder, pa.concat_tables([read_dataset(parts, REJECTED), more]), REJECTED)


def _written(dataset: Path) -> int:
    """Rows of a dataset, from its files."""
    return sum(int(pq.read_metadata(file).num_rows) for file in dataset_files(dataset))
