"""Stage `ingest`: pictures from the web by img2dataset, on Ray.

Each row of the metadata ends in exactly one of three datasets: `samples`, `rejected` (not wanted) or `failed` (not
downloaded this time), the last two with a reason from `stages.ingest.outcomes`. The list of URLs is sorted by sample id
and cut into shards. A shard is a range of ids, so that the output, written shard by shard, is in order.

The driver makes the list, on its own disk, and hands each task the rows of its shard. The downloaded shards go to
`context.scratch`, and the samples to the output, without passing through the driver. A stage that was killed goes on
with the shards that are missing, also on another machine: the same metadata give the same list. Neither the list nor
the pictures need to fit in memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.contract import StageContext, StageError, StageResult
from stages.data.bulk_files import working_folder
from stages.data.datasets import dataset_files, dataset_rows, write_in_order, write_part
from stages.data.schemas import REJECTED
from stages.ingest.config import IngestConfig
from stages.ingest.download import SHARD, Site, download_shards
from stages.ingest.metadata import metadata_files
from stages.ingest.outcomes import check_failed_share, check_sum, outcome_table
from stages.ingest.partitions import keys_of_ids
from stages.ingest.shards import ConvertedShard, EarlierOutput, convert_shard
from stages.ingest.url_list import UrlList, write_url_list
from stages.ray_tools.tasks import run_tasks
from stages.storage import StorePath, absolute, remove

#: A file in the output with the settings that its pictures depend on. Only outputs with the same can be merged.
_RULES_FILE = "picture_rules.json"
_PICTURE_RULES = ("image_size", "min_image_size", "max_aspect_ratio", "max_pixels")
#: A file in scratch with the digest of the list that the shards there belong to.
_LIST_DIGEST = "urls.sha256"


def run(context: StageContext) -> StageResult:
    """Write `samples/`, `rejected/` and `failed/`."""
    with working_folder(absolute(context.scratch)) as folder:
        return _run(context, folder)


def _run(context: StageContext, folder: Path) -> StageResult:
    settings, shards = context.config.ingest, absolute(context.scratch) / "shards"
    earlier = _earlier_output(context.previous, settings) if settings.retry else None
    source = settings.metadata or context.inputs["microworld"] / "metadata"
    urls = write_url_list(metadata_files(source), settings, folder / "list")
    _use_list(urls, shards)
    download_shards(urls, shards, settings, context.report, earlier, _site(context))
    context.report.progress(urls.wanted, urls.wanted, "sorting the downloaded pictures")
    counts = _write_datasets(urls, shards, absolute(context.output), folder, earlier, settings)
    context.report.table(("outcome", "reason", "rows", "share"), outcome_table(*counts))
    try:
        check_failed_share(urls.total, *counts, settings.max_failed_share)
    except StageError:
        remove(shards)  # the same command tries the failed rows again
        raise
    return _result(urls.total, *counts)


def _write_datasets(
    urls: UrlList,
    shards: StorePath,
    output: StorePath,
    folder: Path,
    earlier: EarlierOutput | None,
    settings: IngestConfig,
) -> tuple[int, Counter[str], Counter[str]]:
    """Write the output from the downloaded shards; returns the rows kept, and those rejected and failed by reason."""
    others = {name: folder / name for name in ("rejected", "failed")}
    _convert_shards(urls, shards, output / "samples", others, earlier, settings)
    rejected = sum(map(_reasons, _parts(others["rejected"])), urls.rejected)
    failed = sum(map(_reasons, _parts(others["failed"])), Counter[str]())
    for part in _parts(others["rejected"]):
        urls.rejected_rows.add(part, keys_of_ids(part["sample_id"].to_pylist()))
    ordered = (rows.sort_by("sample_id") for rows in urls.rejected_rows.tables())
    write_in_order(output / "rejected", ordered, REJECTED)
    write_in_order(output / "failed", _parts(others["failed"]), REJECTED)
    (output / _RULES_FILE).write_text(json.dumps(_picture_rules(settings)) + "\n")
    kept, *rows = (dataset_rows(output / name) for name in ("samples", "rejected", "failed"))
    check_sum(urls.total, kept, rejected, failed)
    check_sum(urls.total, kept, *(Counter(all=count) for count in rows))
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


def _earlier_output(previous: StorePath | None, settings: IngestConfig) -> EarlierOutput:
    """The output whose failed rows are to be downloaded again.

    Raises:
        StageError: There is none, or its pictures were made with other settings.
    """
    if previous is None:
        raise StageError("ingest.retry=failed needs an earlier output with failed rows: run without it first.")
    earlier = absolute(previous)
    if not (earlier / "failed").is_dir():
        raise StageError(
            f"ingest.retry=failed: {earlier} does not list its failed rows; run the stage again without retry."
        )
    was, now = json.loads((earlier / _RULES_FILE).read_text()), _picture_rules(settings)
    changed = ", ".join(f"ingest.{key} was {was.get(key)}" for key in now if was.get(key) != now[key])
    if changed:
        raise StageError(
            f"ingest.retry=failed continues {earlier}, which was made with other settings: {changed}; use the same."
        )
    return EarlierOutput.at(earlier)


def _picture_rules(settings: IngestConfig) -> dict[str, float]:
    return {key: getattr(settings, key) for key in _PICTURE_RULES}


def _use_list(urls: UrlList, shards: StorePath) -> None:
    """Remove the downloads of another list."""
    file, digest = shards.with_name(_LIST_DIGEST), urls.digest
    if file.exists() and file.read_text() == digest:
        return
    remove(file)  # first: from here on the shards belong to no list
    remove(shards)
    shards.mkdir()
    file.write_text(digest)


def _site(context: StageContext) -> Site | None:
    """The micro world's pictures; None if the metadata comes from elsewhere."""
    if context.config.ingest.metadata is not None:
        return None
    world = context.inputs["microworld"]
    site = json.loads((world / "site.json").read_text())
    return Site(root=absolute(world) / site["root"], port=site["port"])


def _convert_shards(
    urls: UrlList,
    shards: StorePath,
    samples: StorePath,
    others: dict[str, Path],
    earlier: EarlierOutput | None,
    settings: IngestConfig,
) -> None:
    """Write the dataset `samples`, and the other rows into folders on this machine; one part of each a shard."""
    for folder in others.values():
        remove(folder)  # of an interrupted call

    def arguments(number: int) -> tuple[Any, ...]:
        rows = urls.shard(number)
        return rows, number, shards, samples, earlier and earlier.part(rows)

    def finished(number: int, converted: ConvertedShard) -> None:
        for name, folder in others.items():
            write_part(folder, number, getattr(converted, name), REJECTED)

    run_tasks(convert_shard, arguments, range(len(urls.shard_sizes)), settings.processes, finished, SHARD)


def _parts(folder: Path) -> Iterator[pa.Table]:
    """The files of a dataset, one after the other: one a shard, so in the order of their ids."""
    return (pq.read_table(file) for file in dataset_files(folder))


def _reasons(rejected: pa.Table) -> Counter[str]:
    return Counter(rejected["reason"].to_pylist())
