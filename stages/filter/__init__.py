"""Stage `filter`: which samples are worth training on, with Ray Data.

Every picture is decoded once, in parallel; only hashes and verdicts come back. Duplicates are found among the rows that
pass all thresholds, in the order of their ids, so that the outcome does not depend on how the work was divided.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from stages.config import FilterConfig
from stages.datasets import dataset_files, read_dataset, write_dataset, write_part
from stages.filter.duplicates import find_duplicates, signature
from stages.filter.rules import SCORE_RULES, SETTING_OF, rejection
from stages.schemas import REJECTED, SAMPLES
from stages.stage import Reporter, StageContext, StageError, StageResult

_ROWS_PER_TASK = 1024
_ROWS_PER_BATCH = 256
_INSPECTED = pa.schema(
    [("sample_id", pa.string()), ("reason", pa.string()), ("detail", pa.string()), ("signature", pa.binary())]
)
_ROW_COLUMNS = [name for name in SAMPLES.names if name != "picture"]


def run(context: StageContext) -> StageResult:
    """Write `samples/` and `rejected/`."""
    settings, folder = context.config.filter, context.inputs["ingest"] / "samples"
    rows = read_dataset(folder, SAMPLES, columns=_ROW_COLUMNS)
    if not rows.num_rows:
        raise StageError("the stage ingest has kept no sample, so there is nothing to filter; see its rejected rows.")
    check_scores(rows, settings)
    verdicts = judge(folder, rows.num_rows, settings, context.report)
    _keep(folder, context.output.resolve() / "samples", verdicts)
    rejected = _rejected_rows(rows, verdicts)
    write_dataset(context.output / "rejected", rejected, REJECTED)
    reasons = Counter(rejected.column("reason").to_pylist())
    kept = rows.num_rows - rejected.num_rows
    if not kept:
        raise StageError(nothing_left(rows.num_rows, reasons))
    return StageResult(
        rows={"samples": kept, "rejected": rejected.num_rows},
        metrics={f"rejected_{reason}": float(count) for reason, count in sorted(reasons.items())},
    )


def check_scores(rows: pa.Table, settings: FilterConfig) -> None:
    """Refuse a threshold on a score that no row has.

    Raises:
        StageError: Naming the column of LAION's metadata that is missing, and the setting that goes without it.
    """
    for rule in SCORE_RULES:
        is_absent = rows.column(rule.score).null_count == rows.num_rows
        if getattr(settings, rule.setting) is not None and is_absent:
            raise StageError(
                f"filter.{rule.setting} needs the score {rule.score!r}, which no sample has: the metadata lacks "
                f"LAION's column {rule.laion_column!r}; add it, or go without by --set filter.{rule.setting}=null."
            )


def judge(folder: Path, total: int, settings: FilterConfig, report: Reporter) -> dict[str, tuple[str, str]]:
    """The reason and the detail for each sample id that is rejected."""
    groups = group_files(dataset_files(folder), _ROWS_PER_TASK)
    inspected = ray.data.from_items(
        [{"files": [str(file) for file in group]} for group in groups], override_num_blocks=len(groups)
    ).map_batches(inspect, fn_kwargs={"settings": settings}, batch_format="pyarrow", batch_size=None)
    verdicts: dict[str, tuple[str, str]] = {}
    signatures: dict[str, bytes] = {}
    done = 0
    for batch in inspected.iter_batches(batch_format="pyarrow", batch_size=None):
        for row in batch.to_pylist():
            if row["reason"] is not None:
                verdicts[row["sample_id"]] = (row["reason"], row["detail"])
            else:
                signatures[row["sample_id"]] = row["signature"]
        done += batch.num_rows
        report.progress(done, total, "looking at pictures")
    if settings.drop_duplicates:
        verdicts |= find_duplicates(signatures)
    return verdicts


def group_files(files: Sequence[Path], rows: int) -> list[list[Path]]:
    """Consecutive files, at least `rows` rows a group: the start of a worker costs more than the work on a few."""
    groups: list[list[Path]] = []
    room = 0
    for file in files:
        if room <= 0:
            groups.append([])
            room = rows
        groups[-1].append(file.resolve())
        room -= pq.read_metadata(file).num_rows
    return groups


def inspect(batch: pa.Table, settings: FilterConfig) -> Iterator[pa.Table]:
    """For each sample of the files in the column `files`: its verdict and its signature (schema `_INSPECTED`)."""
    for file in itertools.chain.from_iterable(batch["files"].to_pylist()):
        for rows in pq.ParquetFile(file).iter_batches(_ROWS_PER_BATCH):
            yield pa.Table.from_pylist([inspect_row(row, settings) for row in rows.to_pylist()], schema=_INSPECTED)


def inspect_row(row: Mapping[str, Any], settings: FilterConfig) -> dict[str, Any]:
    """Reason and detail (None for a sample that passes), and the signature of its picture (None if undecodable)."""
    seen = signature(row["picture"])
    if isinstance(seen, str):
        return {"sample_id": row["sample_id"], "reason": "undecodable", "detail": seen, "signature": None}
    reason, detail = rejection(row, settings) or (None, None)
    return {"sample_id": row["sample_id"], "reason": reason, "detail": detail, "signature": seen}


def _keep(folder: Path, output: Path, rejected: Mapping[str, Any]) -> None:
    """Copy the samples that are not rejected, file by file."""
    ids = ray.put(pa.array(sorted(rejected), pa.string()))
    copy = ray.remote(copy_kept)
    first, tasks = 0, []
    for group in group_files(dataset_files(folder), _ROWS_PER_TASK):
        tasks.append(copy.remote(group, first, ids, output))
        first += len(group)
    ray.get(tasks)


def copy_kept(files: Sequence[Path], first: int, rejected: pa.Array, output: Path) -> None:
    """Write what is not rejected of each file as a part of `output`, numbered from `first`."""
    for number, file in enumerate(files, start=first):
        table = pq.read_table(file)
        is_rejected = pc.is_in(table["sample_id"], value_set=rejected)
        write_part(output, number, table.filter(pc.invert(is_rejected)), SAMPLES)


def _rejected_rows(rows: pa.Table, verdicts: Mapping[str, tuple[str, str]]) -> pa.Table:
    """The rejected rows (schema REJECTED)."""
    rejected = [
        {**row, "reason": verdicts[row["sample_id"]][0], "detail": verdicts[row["sample_id"]][1]}
        for row in rows.select(["sample_id", "url", "caption"]).to_pylist()
        if row["sample_id"] in verdicts
    ]
    return pa.Table.from_pylist(rejected, schema=REJECTED)


def nothing_left(total: int, reasons: Mapping[str, int]) -> str:
    """What to tell a user whose filter took everything."""
    taken = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    counts = ", ".join(f"{reason} took {count}" for reason, count in taken)
    settings = [SETTING_OF[reason] for reason, _ in taken if reason in SETTING_OF]
    advice = f"; loosen the first with --set filter.{settings[0]}=..." if settings else ""
    return f"the filter left none of {total} samples: {counts}{advice}."
