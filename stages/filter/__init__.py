"""Stage `filter`: which samples are worth training on, with Ray Data.

1. Every sample meets the rules (`rules.py`), cheapest first, in parallel; a verdict and the picture's signature are
   written to `context.scratch`.
2. Scores that the metadata lacks are computed for what is left, where a model for them is configured.
3. Duplicates are found among what passes, in the order of the ids, so that the outcome does not depend on how the work
   was divided.
4. Every sample is copied to `samples/` or to `rejected/`.

No picture comes to the driver but the few of the plot `waterfall.png`; the search for duplicates needs about 100 bytes
there for a sample that passes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from stages.config import FilterConfig
from stages.datasets import dataset_files, read_dataset
from stages.filter.copying import Outcome, copy_group, join_outcomes
from stages.filter.duplicates import COLOUR_BYTES, Signatures, find_duplicates
from stages.filter.rules import SCORE_RULES, SETTING_OF, computed_scores
from stages.filter.scoring import MICRO, compute_scores
from stages.filter.verdicts import FileGroup, group_files, inspect, read_verdicts
from stages.filter.waterfall import plot_waterfall
from stages.schemas import SAMPLES
from stages.stage import Reporter, StageContext, StageError, StageResult

_ROWS_PER_TASK = 1024
_NO_DUPLICATES = pa.schema([("sample_id", pa.string()), ("reason", pa.string()), ("detail", pa.string())]).empty_table()


def run(context: StageContext) -> StageResult:
    """Write `samples/`, `rejected/` and `waterfall.png`."""
    settings, folder = context.config.filter, context.inputs["ingest"] / "samples"
    groups = group_files(dataset_files(folder), _ROWS_PER_TASK)
    total = sum(group.rows for group in groups)
    if not total:
        raise StageError("the stage ingest has kept no sample, so there is nothing to filter; see its rejected rows.")
    check_settings(folder, settings)
    verdicts = context.scratch.resolve() / "verdicts"
    verdicts.mkdir(exist_ok=True)
    pending = judge(groups, verdicts, settings, context.report)
    if pending:
        waiting = sum(pending.values())
        context.report.warning(_who_computes(waiting, settings))
        compute_scores([group for group in groups if pending[group.number]], verdicts, settings, context.report)
    duplicates = duplicates_by_group(groups, verdicts) if settings.drop_duplicates else [_NO_DUPLICATES for _ in groups]
    outcome = _copy(groups, verdicts, duplicates, context.output.resolve(), settings)
    if not outcome.kept:
        raise StageError(nothing_left(total, outcome.reasons))
    plot_waterfall(outcome, context.output / "waterfall.png")
    context.report.picture("waterfall", context.output / "waterfall.png")
    return StageResult(
        rows={"samples": outcome.kept, "rejected": outcome.reasons.total()},
        metrics={
            **{f"rejected_{reason}": float(count) for reason, count in sorted(outcome.reasons.items())},
            **({"scored": float(sum(pending.values()))} if pending else {}),
        },
    )


def check_settings(folder: Path, settings: FilterConfig) -> None:
    """Refuse a threshold on what no sample has and nothing computes.

    Raises:
        StageError: Naming the column of LAION's metadata that is missing, and the setting that goes without it.
    """
    if settings.scoring.actors < 1 or settings.scoring.batch_size < 1:
        raise StageError("filter.scoring.actors and filter.scoring.batch_size must be at least 1.")
    needed = {
        rule.score: (rule.laion_column, f"filter.{rule.setting}")
        for rule in SCORE_RULES
        if rule.limit(settings) is not None and rule.score not in computed_scores(settings)
    }
    if settings.languages is not None:
        needed["language"] = ("LANGUAGE", "filter.languages")
    rows = read_dataset(folder, SAMPLES, columns=sorted(needed)) if needed else None
    for score, (column, setting) in needed.items():
        assert rows is not None
        if rows.column(score).null_count == rows.num_rows:
            raise StageError(
                f"{setting} needs {score!r}, which no sample has: the metadata lacks LAION's column {column!r}; add "
                f"it, or go without by --set {setting}=null."
            )


def judge(groups: list[FileGroup], folder: Path, settings: FilterConfig, report: Reporter) -> Counter[int]:
    """Write the verdicts of all groups; returns how many samples of each wait for a score."""
    total, done = sum(group.rows for group in groups), 0
    pending = Counter[int]()
    inspected = ray.data.from_items(
        [{"group": vars(group)} for group in groups], override_num_blocks=len(groups)
    ).map_batches(inspect, fn_kwargs={"folder": folder, "settings": settings}, batch_format="pyarrow", batch_size=None)
    for batch in inspected.iter_batches(batch_format="pyarrow", batch_size=None):
        for row in batch.to_pylist():
            done += row["rows"]
            pending[row["group"]] += row["pending"]
        report.progress(done, total, "looking at pictures")
    return +pending


def _who_computes(samples: int, settings: FilterConfig) -> str:
    models = {"similarity": settings.scoring.similarity_clip, "aesthetic": settings.scoring.aesthetic_head}
    named = ", ".join(f"{score} by {models[score]}" for score in sorted(computed_scores(settings)))
    note = "; the micro CLIP knows the micro world only" if MICRO in models.values() else ""
    return f"{samples} samples lack a score in the metadata, which is computed: {named}{note}."


def duplicates_by_group(groups: list[FileGroup], folder: Path) -> list[pa.Table]:
    """For each group the samples that are duplicates: columns sample_id, reason, detail."""
    passing = read_verdicts(groups, folder, ["sample_id", "digest", "bits"])
    if not passing.num_rows:
        return [_NO_DUPLICATES for _ in groups]
    order = pc.sort_indices(passing["sample_id"]).to_numpy()
    found = find_duplicates(
        Signatures(
            digests=_bytes_of(passing["digest"], np.uint64)[order],
            bits=passing["bits"].to_numpy()[order],
            colours=_colours(groups, folder, passing.num_rows),
            rows=order.astype(np.int64),
        )
    )
    is_copy = found.original >= 0
    ids = passing["sample_id"].take(pa.array(order[is_copy])).to_pylist()
    originals = passing["sample_id"].take(pa.array(order[found.original[is_copy]])).to_pylist()
    is_exact = found.is_exact[is_copy].tolist()
    words = ["same pixels as" if exact else "much like" for exact in is_exact]
    reasons = ["duplicate" if exact else "near_duplicate" for exact in is_exact]
    details = [f"{told} {other}" for told, other in zip(words, originals, strict=True)]
    table = pa.table(
        {
            "sample_id": pa.array(ids, pa.string()),
            "reason": pa.array(reasons, pa.string()),
            "detail": pa.array(details, pa.string()),
        }
    )
    ends = np.cumsum([read_verdicts([group], folder, ["bits"]).num_rows for group in groups])
    group_of = np.searchsorted(ends, order[is_copy], side="right")
    return [table.filter(pa.array(group_of == number)) for number in range(len(groups))]


def _bytes_of(column: pa.ChunkedArray, dtype: type[np.generic]) -> np.ndarray:
    """A column of byte strings of one length, as (rows, numbers)."""
    chunk = column.combine_chunks()
    data = np.frombuffer(chunk.buffers()[1], dtype=np.uint8)
    width = chunk.type.byte_width
    data = data[chunk.offset * width : (chunk.offset + len(chunk)) * width]
    return data.reshape(len(chunk), width).view(dtype)


def _colours(groups: list[FileGroup], folder: Path, rows: int) -> np.ndarray:
    """The colours of all passing samples (rows, 192), mapped from a file of their own: they may not fit in memory."""
    file = folder / "colours.bin"
    colours = np.memmap(file, dtype=np.uint8, mode="w+", shape=(rows, COLOUR_BYTES))
    start = 0
    for group in groups:
        part = _bytes_of(read_verdicts([group], folder, ["colours"])["colours"], np.uint8)
        colours[start : start + len(part)] = part
        start += len(part)
    return colours


def _copy(
    groups: list[FileGroup], verdicts: Path, duplicates: list[pa.Table], output: Path, settings: FilterConfig
) -> Outcome:
    copy = ray.remote(copy_group)
    tasks = [
        copy.remote(group, verdicts, late, output, settings) for group, late in zip(groups, duplicates, strict=True)
    ]
    return join_outcomes(ray.get(tasks))


def nothing_left(total: int, reasons: Mapping[str, int]) -> str:
    """What to tell a user whose filter took everything."""
    taken = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    counts = ", ".join(f"{reason} took {count}" for reason, count in taken)
    settings = [SETTING_OF[reason] for reason, _ in taken if reason in SETTING_OF]
    advice = f"; loosen the first with --set filter.{settings[0]}=..." if settings else ""
    return f"the filter left none of {total} samples: {counts}{advice}."
