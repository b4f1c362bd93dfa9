"""Stage `filter`: which samples are worth training on, with Ray Data.

1. The rules (`rules.py`), cheapest first, are applied to all samples in parallel. A verdict on each sample and the
   picture's signature are written to `context.scratch`.
2. Scores that the metadata lacks are computed for the samples that are left, if a model for them is configured.
3. Duplicates are searched among the samples that pass, in the order of the ids, so that the result does not depend on
   how the work was divided. Of rows with the same id the first is kept, because ids identify samples from here on.
4. Each sample is copied to `samples/` or to `rejected/`, and the numbers of rows must add up.

With `filter.pictures_folder` the samples come from a folder that another tool has written, not from `ingest`.

The driver holds no pictures but the examples of the plot `waterfall.png`. The search for duplicates needs 0.2 GB there,
and about 100 bytes for each sample that passes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.contract import Reporter, StageContext, StageError, StageResult
from stages.data.bulk_files import read_each, working_folder
from stages.data.datasets import dataset_files, dataset_rows, read_dataset, row_counts
from stages.data.schemas import SAMPLES
from stages.filter.adoption import adopt
from stages.filter.config import FilterConfig
from stages.filter.copying import Outcome, copy_group, join_outcomes
from stages.filter.duplicates import COLOUR_BYTES, Signatures, find_duplicates
from stages.filter.foreign_rows import Columns
from stages.filter.hub_datasets import hub_dataset, is_hub_id
from stages.filter.rules import COMPUTABLE, SETTING_OF, computed_scores
from stages.filter.score_columns import missing_columns, needed_columns
from stages.filter.scoring import MICRO, compute_scores
from stages.filter.verdicts import FileGroup, group_files, inspect, read_verdicts
from stages.ray_tools.cluster import cluster_cores, nodes_may_join
from stages.ray_tools.mapping import Progress, Workers, map_on_workers, one_row_batches, rows_of
from stages.ray_tools.tasks import run_tasks
from stages.storage import StorageError, StorePath, absolute, copy_file, parquet_source, store_path

#: Between two tasks Ray Data needs a fifth of a second. So tasks are long, but there are enough for all cores, and one
#: task more than there are cores runs at the same time.
_LEAST_ROWS_PER_TASK, _MOST_ROWS_PER_TASK = 1024, 8192
_TASKS_PER_CORE = 4
_NO_DUPLICATES = pa.schema([("row", pa.int32()), ("reason", pa.string()), ("detail", pa.string())]).empty_table()


def run(context: StageContext) -> StageResult:
    """Write `samples/`, `rejected/` and `waterfall.png`."""
    settings, output, scratch = context.config.filter, absolute(context.output), absolute(context.scratch)
    folder, refused = _source(context)
    cores = context.config.run.cpus or cluster_cores()
    files = dataset_files(folder)
    counts = row_counts(files)
    if not sum(counts):
        raise StageError(nothing_to_filter(settings.pictures_folder, refused))
    check_settings(folder, settings)
    groups = group_files(files, counts, _rows_per_task(sum(counts), cores))
    verdicts = scratch / "verdicts"
    # What waits for CPUs runs on a node that joins later.
    at_once = len(groups) if context.config.run.cpus is None and nodes_may_join() else cores
    pending = _judge(groups, verdicts, context, at_once)
    groups = [dataclasses.replace(group, is_scored=pending[group.number] > 0) for group in groups]
    with working_folder(scratch) as here:
        duplicates = duplicates_by_group(groups, verdicts, here / "colours.bin", settings.drop_duplicates)
    outcome = _copy(groups, verdicts, duplicates, context, at_once)
    _copy_refused(folder.parent / "rejected", output / "rejected", refused)
    outcome = join_outcomes([outcome, Outcome(reasons=refused)])
    total = sum(counts) + refused.total()
    check_sum(total, dataset_rows(output / "samples"), dataset_rows(output / "rejected"))
    if not outcome.kept:
        raise StageError(nothing_left(total, outcome.reasons))
    _plot(outcome, context)
    return StageResult(
        rows={"samples": outcome.kept, "rejected": outcome.reasons.total()},
        metrics={
            **{f"rejected_{reason}": float(count) for reason, count in sorted(outcome.reasons.items())},
            **({"scored": float(pending.total())} if pending else {}),
        },
    )


def _plot(outcome: Outcome, context: StageContext) -> None:
    from stages.filter.waterfall import plot_waterfall  # here, because workers need no matplotlib

    plot_waterfall(outcome, context.output / "waterfall.png")
    context.report.picture("waterfall", context.output / "waterfall.png")


def _judge(groups: list[FileGroup], verdicts: StorePath, context: StageContext, at_once: int) -> Counter[int]:
    """Write the verdicts of all groups; returns for each group how many missing scores were computed."""
    settings = context.config.filter
    pending = apply_rules(groups, verdicts, settings, at_once, context.report)
    if pending:
        context.report.warning(_computed_scores_note(pending.total(), settings))
        compute_scores([group for group in groups if pending[group.number]], verdicts, settings, context.report)
    return pending


def _source(context: StageContext) -> tuple[StorePath, Counter[str]]:
    """The folder of the samples, and the rows of another tool's folder that were refused, by reason.

    Beside the folder lies `rejected` with the refused rows.
    """
    source = context.config.filter.pictures_folder
    if source is None:
        return context.inputs["ingest"] / "samples", Counter()
    adopted, settings = absolute(context.scratch) / "adopted", context.config.filter
    try:
        folder = hub_dataset(source) if is_hub_id(source) else store_path(source)
        columns = Columns(picture=settings.picture_column, caption=settings.caption_column)
        adopt(folder, adopted, context.report, columns)
    except StorageError as error:
        raise StageError(f"filter.pictures_folder: {error}") from error
    reasons = read_each(_reasons_in, dataset_files(adopted / "rejected"), adopted)
    return adopted / "samples", sum(reasons, Counter[str]())


def _reasons_in(file: StorePath) -> Counter[str]:
    return Counter(pq.read_table(parquet_source(file), columns=["reason"])["reason"].to_pylist())


def _copy_refused(folder: StorePath, rejected: StorePath, refused: Counter[str]) -> None:
    """Append the rows that were refused before the rules to the rejected rows."""
    if refused:
        parts = len(dataset_files(rejected))
        for number, file in enumerate(dataset_files(folder), start=parts):
            copy_file(file, rejected / f"part-{number:05d}.parquet")


def check_sum(rows: int, kept: int, rejected: int) -> None:
    """Check that each row has exactly one outcome; raises StageError."""
    if rows != kept + rejected:
        raise StageError(
            f"the rows do not add up: {rows} read, but {kept} are kept and {rejected} rejected; this is a defect of "
            "the stage filter, and nothing was committed."
        )


def check_settings(folder: StorePath, settings: FilterConfig) -> None:
    """Check that each threshold is on a score that some sample has or a model computes.

    Raises:
        StageError: Names the missing columns of LAION's metadata, and the settings that disable the thresholds.
    """
    needed = needed_columns(settings)
    if not needed:
        return
    rows = read_dataset(folder, SAMPLES, columns=sorted(needed))
    found = {score for score in needed if rows.column(score).null_count < rows.num_rows}
    if problem := missing_columns(found, settings):
        raise StageError(problem)


def _rows_per_task(rows: int, cores: int) -> int:
    return min(max(rows // (_TASKS_PER_CORE * cores), _LEAST_ROWS_PER_TASK), _MOST_ROWS_PER_TASK)


def apply_rules(
    groups: list[FileGroup], folder: StorePath, settings: FilterConfig, at_once: int, report: Reporter
) -> Counter[int]:
    """Write the verdicts of all groups; returns for each group how many samples wait for a score."""
    pending = Counter[int]()
    total = sum(group.rows for group in groups)
    inspected = map_on_workers(
        inspect,
        one_row_batches({"group": vars(group)} for group in groups),
        arguments={"folder": folder, "settings": settings},
        workers=Workers(count=at_once + 1),
        progress=Progress(report=report, total=total, note="applying the rules", amount=rows_of),
    )
    for batch in inspected:
        for row in batch.to_pylist():
            pending[row["group"]] += row["pending"]
    return +pending


def _computed_scores_note(samples: int, settings: FilterConfig) -> str:
    models = {score: getattr(settings.scoring, key) for score, key in COMPUTABLE.items()}
    named = ", ".join(f"{score} by {models[score]}" for score in sorted(computed_scores(settings)))
    note = "; the micro CLIP knows the micro world only" if MICRO in models.values() else ""
    return f"{samples} samples lack a score in the metadata, which is computed: {named}{note}."


def duplicates_by_group(
    groups: list[FileGroup], folder: StorePath, colours: Path, drop_duplicates: bool
) -> list[pa.Table]:
    """The samples of each group that are duplicates: columns row (in the group), reason, detail.

    Args:
        groups: All groups.
        folder: The folder of their verdicts.
        colours: A file on this machine for the pictures' colours, which may not fit in memory.
        drop_duplicates: False: only repeated ids are duplicates.
    """
    passing, ends = _passing(groups, folder, colours)
    if not passing.num_rows:
        return [_NO_DUPLICATES for _ in groups]
    ids = passing["sample_id"].combine_chunks()
    order = pc.sort_indices(ids).to_numpy()  # stable: of equal ids the first row stays first
    ordered = ids.take(pa.array(order))
    is_repeated = np.concatenate([[False], pc.equal(ordered[1:], ordered[:-1]).to_numpy(zero_copy_only=False)])
    rows, order = order[is_repeated], order[~is_repeated]
    reasons = [("duplicate_id", f"{name} has come before") for name in ids.take(pa.array(rows)).to_pylist()]
    if drop_duplicates:
        mapped = np.memmap(colours, dtype=np.uint8, mode="r", shape=(passing.num_rows, COLOUR_BYTES))
        copies, found = _copies(passing.select(["digest", "bits"]), mapped, ids, order)
        rows, reasons = np.concatenate([rows, copies]), reasons + found
    columns = {
        "row": passing["row"].to_numpy()[rows],
        "reason": [reason for reason, _ in reasons],
        "detail": [detail for _, detail in reasons],
    }
    return _split_by_group(pa.table(columns, schema=_NO_DUPLICATES.schema), np.searchsorted(ends, rows, "right"), ends)


def _split_by_group(table: pa.Table, group_of: np.ndarray, ends: np.ndarray) -> list[pa.Table]:
    """Cut a table by the number of the group that each row belongs to."""
    table = table.take(pa.array(np.argsort(group_of, kind="stable")))
    bounds = np.cumsum([0, *np.bincount(group_of, minlength=len(ends))])
    return [table[start:end] for start, end in pairwise(bounds)]


def _copies(
    signatures: pa.Table, colours: np.ndarray, ids: pa.Array, order: np.ndarray
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """The rows that duplicate an earlier row in `order`, and the reason and detail of each."""
    found = find_duplicates(
        Signatures(
            digests=_bytes_of(signatures["digest"], np.uint64)[order],
            bits=signatures["bits"].to_numpy()[order],
            colours=colours,
            rows=order.astype(np.int64),
        )
    )
    is_copy = found.original >= 0
    originals = ids.take(pa.array(order[found.original[is_copy]])).to_pylist()
    reasons = [
        ("duplicate", f"same pixels as {other}") if exact else ("near_duplicate", f"much like {other}")
        for exact, other in zip(found.is_exact[is_copy].tolist(), originals, strict=True)
    ]
    return order[is_copy], reasons


def _bytes_of(column: pa.ChunkedArray, dtype: type[np.generic]) -> np.ndarray:
    """A column of byte strings of equal length as an array (rows, numbers)."""
    chunk = column.combine_chunks()
    data = np.frombuffer(chunk.buffers()[1], dtype=np.uint8)
    width = chunk.type.byte_width
    data = data[chunk.offset * width : (chunk.offset + len(chunk)) * width]
    return data.reshape(len(chunk), width).view(dtype)


def _passing(groups: list[FileGroup], folder: StorePath, colours: Path) -> tuple[pa.Table, np.ndarray]:
    """The samples that pass, and the number of those up to the end of each group; their colours go to a file."""
    tables = []
    with colours.open("wb") as file:
        for table in read_verdicts(groups, folder, ["sample_id", "digest", "bits", "colours"]):
            if table.num_rows:
                file.write(_bytes_of(table["colours"], np.uint8).tobytes())
            tables.append(table.drop_columns("colours"))
    return pa.concat_tables(tables), np.cumsum([table.num_rows for table in tables])


def _copy(
    groups: list[FileGroup], verdicts: StorePath, duplicates: list[pa.Table], context: StageContext, at_once: int
) -> Outcome:
    """Write the samples and the rejected rows of all groups."""
    output, settings = absolute(context.output), context.config.filter
    progress = _CopyProgress(groups, context.report)

    def arguments(number: int) -> tuple[Any, ...]:
        return groups[number], verdicts, duplicates[number], output, settings

    run_tasks(copy_group, arguments, range(len(groups)), at_once, progress.finished, "group {} of the samples")
    return progress.joined


class _CopyProgress:
    """Joins the outcomes of the groups in order, each as early as possible: they hold the pictures of examples."""

    def __init__(self, groups: list[FileGroup], report: Reporter) -> None:
        self.groups, self.report = groups, report
        self.joined = Outcome()
        self._waiting: dict[int, Outcome] = {}
        self._done = self._next = 0

    def finished(self, number: int, outcome: Outcome) -> None:
        """Add the outcome of a group, in any order."""
        self._waiting[number] = outcome
        while self._next in self._waiting:
            self.joined = join_outcomes([self.joined, self._waiting.pop(self._next)])
            self._next += 1
        self._done += self.groups[number].rows
        self.report.progress(self._done, sum(group.rows for group in self.groups), "writing samples")


def nothing_to_filter(source: str | None, refused: Counter[str]) -> str:
    """The error message for an empty input."""
    if source is None:
        return "the stage ingest has kept no sample, so there is nothing to filter; see its rejected rows."
    counts = ", ".join(f"{reason} {count}" for reason, count in refused.most_common()) or "there are none"
    return f"filter.pictures_folder: of the rows of {source} none is a picture with a caption ({counts})."


def nothing_left(total: int, reasons: Mapping[str, int]) -> str:
    """The error message when all samples were rejected."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    counts = ", ".join(f"{reason} {count}" for reason, count in ordered)
    settings = [SETTING_OF[reason] for reason, _ in ordered if reason in SETTING_OF]
    advice = f"; loosen the first with --set filter.{settings[0]}=..." if settings else ""
    return f"the filter rejected all {total} samples: {counts}{advice}."
