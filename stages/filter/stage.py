"""Stage `filter`: which samples are worth training on, with Ray Data.

1. Every sample meets the rules (`rules.py`), cheapest first, in parallel; a verdict and the picture's signature are
   written to `context.scratch`.
2. Scores that the metadata lacks are computed for what is left, where a model for them is configured.
3. Duplicates are found among what passes, in the order of the ids, so that the outcome does not depend on how the work
   was divided. Of rows with the same id the first stays: an id is a sample's name from here on.
4. Every sample is copied to `samples/` or to `rejected/`; the rows must add up.

With `filter.pictures_folder` the samples come from a folder that another tool has written, not from `ingest`.

No picture comes to the driver but the few of the plot `waterfall.png`; the search for duplicates needs about 100 bytes
there for a sample that passes, and 0.2 GB besides.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from stages.contract import Reporter, StageContext, StageError, StageResult
from stages.data.datasets import dataset_files, dataset_rows, read_dataset, row_counts
from stages.data.schemas import SAMPLES
from stages.filter.adoption import adopt
from stages.filter.config import FilterConfig
from stages.filter.copying import Outcome, copy_group, join_outcomes
from stages.filter.duplicates import COLOUR_BYTES, Signatures, find_duplicates
from stages.filter.rules import COMPUTABLE, SCORE_RULES, SETTING_OF, computed_scores
from stages.filter.scoring import MICRO, compute_scores
from stages.filter.verdicts import FileGroup, group_files, inspect, read_verdicts
from stages.ray_tools.tasks import cluster_cores, run_tasks

#: A task is followed by the next one after a fifth of a second: tasks are to be long, but enough for all cores, and one
#: more than there are cores goes on meanwhile.
_LEAST_ROWS_PER_TASK, _MOST_ROWS_PER_TASK = 1024, 8192
_TASKS_PER_CORE = 4
_NO_DUPLICATES = pa.schema([("row", pa.int32()), ("reason", pa.string()), ("detail", pa.string())]).empty_table()


def run(context: StageContext) -> StageResult:
    """Write `samples/`, `rejected/` and `waterfall.png`."""
    settings, output = context.config.filter, context.output.resolve()
    folder, refused = _source(context)
    cores = context.config.run.cpus or cluster_cores()
    files = dataset_files(folder)
    counts = row_counts(files)
    groups = group_files(files, counts, _rows_per_task(sum(counts), cores))
    total = sum(group.rows for group in groups) + refused.total()
    if total == refused.total():
        raise StageError(nothing_came(context.config.filter.pictures_folder, refused))
    check_settings(folder, settings)
    verdicts = context.scratch.resolve() / "verdicts"
    verdicts.mkdir(exist_ok=True)
    pending = judge(groups, verdicts, settings, cores, context.report)
    if pending:
        waiting = sum(pending.values())
        context.report.warning(_who_computes(waiting, settings))
        compute_scores([group for group in groups if pending[group.number]], verdicts, settings, context.report)
    duplicates = duplicates_by_group(groups, verdicts, settings.drop_duplicates)
    outcome = _copy(groups, verdicts, duplicates, output, settings, cores, context.report)
    _copy_refused(folder.parent / "rejected", output / "rejected", refused)
    outcome = join_outcomes([outcome, Outcome(reasons=refused)])
    check_sum(total, dataset_rows(output / "samples"), dataset_rows(output / "rejected"))
    if not outcome.kept:
        raise StageError(nothing_left(total, outcome.reasons))
    from stages.filter.waterfall import plot_waterfall  # here, for the workers need not import matplotlib

    plot_waterfall(outcome, context.output / "waterfall.png")
    context.report.picture("waterfall", context.output / "waterfall.png")
    return StageResult(
        rows={"samples": outcome.kept, "rejected": outcome.reasons.total()},
        metrics={
            **{f"rejected_{reason}": float(count) for reason, count in sorted(outcome.reasons.items())},
            **({"scored": float(sum(pending.values()))} if pending else {}),
        },
    )


def _source(context: StageContext) -> tuple[Path, Counter[str]]:
    """The folder of the samples; and why rows of another tool's folder are none, which lie in `rejected` beside it."""
    source = context.config.filter.pictures_folder
    if source is None:
        return context.inputs["ingest"] / "samples", Counter()
    adopted = context.scratch.resolve() / "adopted"
    adopt(Path(source), adopted, context.report)
    reasons = (pq.read_table(file, columns=["reason"])["reason"] for file in dataset_files(adopted / "rejected"))
    return adopted / "samples", sum((Counter(column.to_pylist()) for column in reasons), Counter[str]())


def _copy_refused(folder: Path, rejected: Path, refused: Counter[str]) -> None:
    """Append what was refused before the rules to the rejected rows."""
    if refused:
        parts = len(dataset_files(rejected))
        for number, file in enumerate(dataset_files(folder), start=parts):
            shutil.copyfile(file, rejected / f"part-{number:05d}.parquet")


def check_sum(rows: int, kept: int, rejected: int) -> None:
    """Refuse to commit when rows are missing or too many; raises StageError."""
    if rows != kept + rejected:
        raise StageError(
            f"the rows do not add up: {rows} came, but {kept} are kept and {rejected} rejected; this is a defect of "
            "the stage filter, and nothing was committed."
        )


def check_settings(folder: Path, settings: FilterConfig) -> None:
    """Refuse a threshold on what no sample has and nothing computes.

    Raises:
        StageError: Naming the column of LAION's metadata that is missing, and the setting that goes without it.
    """
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
            model = f"name a model for it in filter.scoring.{COMPUTABLE[score]}, " if score in COMPUTABLE else ""
            raise StageError(
                f"{setting} needs {score!r}, which no sample has: the metadata lacks LAION's column {column!r}; add "
                f"it, {model}or go without by --set {setting}=null."
            )


def _rows_per_task(rows: int, cores: int) -> int:
    return min(max(rows // (_TASKS_PER_CORE * cores), _LEAST_ROWS_PER_TASK), _MOST_ROWS_PER_TASK)


def judge(groups: list[FileGroup], folder: Path, settings: FilterConfig, cores: int, report: Reporter) -> Counter[int]:
    """Write the verdicts of all groups; returns how many samples of each wait for a score."""
    total, done = sum(group.rows for group in groups), 0
    pending = Counter[int]()
    inspected = ray.data.from_items(
        [{"group": vars(group)} for group in groups], override_num_blocks=len(groups)
    ).map_batches(
        inspect,
        fn_kwargs={"folder": folder, "settings": settings},
        batch_format="pyarrow",
        batch_size=None,
        compute=ray.data.TaskPoolStrategy(size=cores + 1),
    )
    for batch in inspected.iter_batches(batch_format="pyarrow", batch_size=None):
        for row in batch.to_pylist():
            done += row["rows"]
            pending[row["group"]] += row["pending"]
        report.progress(done, total, "looking at pictures")
    return +pending


def _who_computes(samples: int, settings: FilterConfig) -> str:
    models = {score: getattr(settings.scoring, key) for score, key in COMPUTABLE.items()}
    named = ", ".join(f"{score} by {models[score]}" for score in sorted(computed_scores(settings)))
    note = "; the micro CLIP knows the micro world only" if MICRO in models.values() else ""
    return f"{samples} samples lack a score in the metadata, which is computed: {named}{note}."


def duplicates_by_group(groups: list[FileGroup], folder: Path, drop_duplicates: bool) -> list[pa.Table]:
    """For each group the samples that are duplicates: columns row (place in the group), reason, detail."""
    passing = read_verdicts(groups, folder, ["sample_id", "digest", "bits"])
    if not passing.num_rows:
        return [_NO_DUPLICATES for _ in groups]
    ids = passing["sample_id"].combine_chunks()
    order = pc.sort_indices(ids).to_numpy()  # stable: of equal ids the first row stays first
    ordered = ids.take(pa.array(order))
    is_repeated = np.concatenate([[False], pc.equal(ordered[1:], ordered[:-1]).to_numpy(zero_copy_only=False)])
    late, order = order[is_repeated], order[~is_repeated]
    told = [("duplicate_id", f"{name} has come before") for name in ids.take(pa.array(late)).to_pylist()]
    if drop_duplicates:
        colours = _colours(groups, folder, passing.num_rows)
        copies, alike = _alike(passing.select(["digest", "bits"]), colours, ids, order)
        late, told = np.concatenate([late, copies]), told + alike
    columns = {
        "row": passing["row"].to_numpy()[late],
        "reason": [reason for reason, _ in told],
        "detail": [detail for _, detail in told],
    }
    table = pa.table(columns, schema=_NO_DUPLICATES.schema)
    ends = np.cumsum([read_verdicts([group], folder, ["bits"]).num_rows for group in groups])
    group_of = np.searchsorted(ends, late, side="right")
    table = table.take(pa.array(np.argsort(group_of, kind="stable")))
    bounds = np.cumsum([0, *np.bincount(group_of, minlength=len(groups))])
    return [table[start:end] for start, end in pairwise(bounds)]


def _alike(
    signatures: pa.Table, colours: np.ndarray, ids: pa.Array, order: np.ndarray
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Which rows show the picture of one before them in `order`, and for each reason and detail."""
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
    told = [
        ("duplicate", f"same pixels as {other}") if exact else ("near_duplicate", f"much like {other}")
        for exact, other in zip(found.is_exact[is_copy].tolist(), originals, strict=True)
    ]
    return order[is_copy], told


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
    groups: list[FileGroup],
    verdicts: Path,
    duplicates: list[pa.Table],
    output: Path,
    settings: FilterConfig,
    cores: int,
    report: Reporter,
) -> Outcome:
    """Write the samples and the rejected rows of all groups."""
    copy = ray.remote(copy_group)
    waiting: dict[int, Outcome] = {}
    joined, done, total = Outcome(), 0, sum(group.rows for group in groups)
    following = 0

    def finished(number: int, outcome: Outcome) -> None:
        nonlocal joined, done, following
        waiting[number] = outcome
        while following in waiting:  # in order, and one by one: each holds the pictures of some examples
            joined = join_outcomes([joined, waiting.pop(following)])
            following += 1
        done += groups[number].rows
        report.progress(done, total, "writing samples")

    run_tasks(
        lambda number: copy.remote(groups[number], verdicts, duplicates[number], output, settings),
        range(len(groups)),
        cores,
        finished,
        "group {} of the samples",
    )
    return joined


def nothing_came(source: str | None, refused: Counter[str]) -> str:
    """What to tell a user when there is no sample to filter."""
    if source is None:
        return "the stage ingest has kept no sample, so there is nothing to filter; see its rejected rows."
    counts = ", ".join(f"{reason} {count}" for reason, count in refused.most_common()) or "there are none"
    return f"filter.pictures_folder: of the rows of {source} none is a picture with a caption ({counts})."


def nothing_left(total: int, reasons: Mapping[str, int]) -> str:
    """What to tell a user whose filter took everything."""
    taken = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    counts = ", ".join(f"{reason} took {count}" for reason, count in taken)
    settings = [SETTING_OF[reason] for reason, _ in taken if reason in SETTING_OF]
    advice = f"; loosen the first with --set filter.{settings[0]}=..." if settings else ""
    return f"the filter left none of {total} samples: {counts}{advice}."
