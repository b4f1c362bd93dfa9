"""Stage `ingest`: pictures from the web by img2dataset, on Ray.

Every row of the metadata ends in exactly one of three datasets: `samples`, `rejected` (we do not want it) or `failed`
(it could not be had this time), the last two with a reason from `stages.ingest.outcomes`. The list of URLs is sorted by
sample id and cut into shards, so that a shard is a range of ids and the output, written shard by shard, is in order.
Half-done work lies in `context.scratch`. Neither the list nor the pictures need fit in memory.
"""

from __future__ import annotations

import filecmp
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from stages.contract import StageContext, StageError, StageResult
from stages.data.datasets import dataset_files, dataset_rows, write_in_order
from stages.data.loopback import serve_folder
from stages.data.schemas import REJECTED
from stages.ingest.config import IngestConfig
from stages.ingest.download import SHARD, download_shards, shard_sizes
from stages.ingest.metadata import metadata_files, write_url_list
from stages.ingest.outcomes import check_sum, outcome_table, refuse_failures
from stages.ingest.partitions import keys_of_ids
from stages.ingest.shards import ShardSummary, convert_shard
from stages.ray_tools.tasks import run_tasks

#: In the output: what its pictures have in common. Another output may be merged with it only when it has the same.
_RULES_FILE = "picture_rules.json"
_PICTURE_RULES = ("image_size", "min_image_size", "max_aspect_ratio", "max_pixels")


def run(context: StageContext) -> StageResult:
    """Write `samples/`, `rejected/` and `failed/`."""
    settings, scratch, output = context.config.ingest, context.scratch.resolve(), context.output.resolve()
    earlier = _earlier_output(context) if settings.retry else None
    source = settings.metadata or str(context.inputs["microworld"] / "metadata")
    urls = write_url_list(metadata_files(source), settings, scratch / "list")
    _use_list(urls.file, scratch)
    with _microworld_served(context):
        download_shards(scratch / "urls.parquet", scratch / "shards", settings, earlier, context.report)
    context.report.progress(urls.wanted, urls.wanted, "sorting what came back")
    summaries = _convert_shards(scratch, output, earlier, settings)
    for part in _parts(scratch / "rejected"):
        urls.rejected_rows.add(part, keys_of_ids(part["sample_id"].to_pylist()))
    ordered = (rows.sort_by("sample_id") for rows in urls.rejected_rows.tables())
    write_in_order(output / "rejected", ordered, REJECTED)
    write_in_order(output / "failed", _parts(scratch / "failed"), REJECTED)
    (output / _RULES_FILE).write_text(json.dumps(_picture_rules(settings)) + "\n")
    rejected = sum((summary.rejected for summary in summaries), urls.rejected)
    failed = sum((summary.failed for summary in summaries), Counter[str]())
    kept, *others = (dataset_rows(output / name) for name in ("samples", "rejected", "failed"))
    check_sum(urls.total, kept, rejected, failed)
    check_sum(urls.total, kept, *(Counter(all=rows) for rows in others))
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


def _use_list(new: Path, scratch: Path) -> None:
    """Make it the list that is cut into shards; what was downloaded for another list is of no use."""
    file = scratch / "urls.parquet"
    if file.exists() and not filecmp.cmp(file, new, shallow=False):
        shutil.rmtree(scratch / "shards", ignore_errors=True)
    new.replace(file)


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
        settings.processes,
        summaries.__setitem__,
        SHARD,
    )
    return [summaries[number] for number in sorted(summaries)]


def _parts(folder: Path) -> Iterator[pa.Table]:
    """The files of a dataset of rejected rows, which one shard has each: in the order of their ids."""
    return (pq.read_table(file) for file in dataset_files(folder))
