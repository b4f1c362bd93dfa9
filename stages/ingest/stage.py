"""Stage `ingest`: pictures from the web by img2dataset, on Ray.

Each row of the metadata ends in exactly one of three datasets: `samples`, `rejected` (not wanted) or `failed` (not
downloaded this time), the last two with a reason from `stages.ingest.outcomes`. The list of URLs is sorted by sample id
and cut into shards. A shard is a range of ids, so that the output, written shard by shard, is in order. Unfinished work
is kept in `context.scratch`. Neither the list nor the pictures need to fit in memory.
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
from stages.ingest.metadata import metadata_files
from stages.ingest.outcomes import check_failed_share, check_sum, outcome_table
from stages.ingest.partitions import keys_of_ids
from stages.ingest.shards import ShardSummary, convert_shard
from stages.ingest.url_list import UrlList, write_url_list
from stages.ray_tools.placement import node_selector
from stages.ray_tools.tasks import run_tasks

#: A file in the output with the settings that its pictures depend on. Only outputs with the same can be merged.
_RULES_FILE = "picture_rules.json"
_PICTURE_RULES = ("image_size", "min_image_size", "max_aspect_ratio", "max_pixels")


def run(context: StageContext) -> StageResult:
    """Write `samples/`, `rejected/` and `failed/`."""
    settings, scratch = context.config.ingest, context.scratch.resolve()
    earlier = _earlier_output(context) if settings.retry else None
    source = settings.metadata or str(context.inputs["microworld"] / "metadata")
    urls = write_url_list(metadata_files(source), settings, scratch / "list")
    _use_list(urls.file, scratch)
    with _microworld_served(context):
        download_shards(scratch / "urls.parquet", scratch / "shards", settings, earlier, context.report)
    context.report.progress(urls.wanted, urls.wanted, "sorting the downloaded pictures")
    counts = _write_datasets(urls, scratch, context.output.resolve(), earlier, settings)
    context.report.table(("outcome", "reason", "rows", "share"), outcome_table(*counts))
    try:
        check_failed_share(urls.total, *counts, settings.max_failed_share)
    except StageError:
        shutil.rmtree(scratch / "shards")  # the same command tries the failed rows again
        raise
    return _result(urls.total, *counts)


def _write_datasets(
    urls: UrlList, scratch: Path, output: Path, earlier: Path | None, settings: IngestConfig
) -> tuple[int, Counter[str], Counter[str]]:
    """Write the output from the downloaded shards; returns the rows kept, and those rejected and failed by reason."""
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
    return kept, rejected, failed


def _result(total: int, kept: int, rejected: Counter[str], failed: Counter[str]) -> StageResult:
    return StageResult(
        rows={"samples": kept, "rejected": rejected.total(), "failed": failed.total()},
        metrics={
            "metadata_rows": float(total),
            **{f"rejected_{reason}": float(count) for reason, count in sorted(rejected.items())},
            **{f"failed_{reason}": float(count) for reason, count in sorted(failed.items())},
        },
    )


def _earlier_output(context: StageContext) -> Path:
    """The output whose failed rows are to be downloaded again.

    Raises:
        StageError: There is none, or its pictures were made with other settings.
    """
    earlier = context.previous
    if earlier is None:
        raise StageError("ingest.retry=failed needs an earlier output with failed rows: run without it first.")
    if not (earlier / "failed").is_dir():
        raise StageError(
            f"ingest.retry=failed: {earlier} does not list its failed rows; run the stage again without retry."
        )
    was, now = json.loads((earlier / _RULES_FILE).read_text()), _picture_rules(context.config.ingest)
    changed = ", ".join(f"ingest.{key} was {was.get(key)}" for key in now if was.get(key) != now[key])
    if changed:
        raise StageError(
            f"ingest.retry=failed continues {earlier}, which was made with other settings: {changed}; use the same."
        )
    return earlier.resolve()


def _picture_rules(settings: IngestConfig) -> dict[str, float]:
    return {key: getattr(settings, key) for key in _PICTURE_RULES}


def _use_list(new: Path, scratch: Path) -> None:
    """Make `new` the list of this stage, and remove the downloads of another list."""
    file = scratch / "urls.parquet"
    if file.exists() and not filecmp.cmp(file, new, shallow=False):
        shutil.rmtree(scratch / "shards", ignore_errors=True)
    new.replace(file)


@contextmanager
def _microworld_served(context: StageContext) -> Iterator[None]:
    """Serve the micro world's pictures while the block runs, unless the metadata comes from elsewhere."""
    if context.config.ingest.metadata is not None:
        yield
        return
    world = context.inputs["microworld"]
    site = json.loads((world / "site.json").read_text())
    with serve_folder(world / site["root"], site["port"]):
        yield


def _convert_shards(scratch: Path, output: Path, earlier: Path | None, settings: IngestConfig) -> list[ShardSummary]:
    """Write `samples`, and the parts of `rejected` and `failed` into `scratch`; one part of each a shard."""
    for parts in ("rejected", "failed"):
        shutil.rmtree(scratch / parts, ignore_errors=True)  # of an interrupted call
    convert = ray.remote(label_selector=node_selector())(convert_shard)
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
    """The files of a dataset, one after the other: one a shard, so in the order of their ids."""
    return (pq.read_table(file) for file in dataset_files(folder))
