"""Stage `curriculum`: the training plan, one row a training example, on Ray.

RealCustom++ trains by its curriculum (Eqs. 10-11). RealCustom trains on generic text-image samples alone, each its own
reference: `curriculum.multiview_probability=0`, `curriculum.max_crop_ratio=1`.

A step's rows depend on the seed and its number alone, not on the workers. All parts of the plan but the last hold the
same number of steps, so that a reader can start anywhere. Samples and pairs are mapped from files: neither they nor the
plan need fit in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from matplotlib.figure import Figure

from model.training.curriculum import Recipe, draw_step
from stages.contract import Reporter, StageContext, StageError, StageResult
from stages.curriculum.config import CurriculumConfig
from stages.data.datasets import check_columns, dataset_files, write_part
from stages.data.schemas import PAIRS, PLAN, SAMPLES

_ROWS_PER_PART = 2**17
_SAMPLE_COLUMNS = ["sample_id", "caption"]
_PAIR_COLUMNS = ["reference_frame_id", "target_frame_id", "category"]
_SHOWN_STEPS = 5000


def run(context: StageContext) -> StageResult:
    """Write `plan/` and `plan.png`."""
    recipe = recipe_of(context.config.curriculum)
    scratch = context.scratch.resolve()
    samples = map_columns(context.inputs["filter"] / "samples", SAMPLES, _SAMPLE_COLUMNS, scratch / "samples.arrow")
    pairs = map_columns(context.inputs["multiview"] / "pairs", PAIRS, _PAIR_COLUMNS, scratch / "pairs.arrow")
    if not samples or not pairs:
        lacking = "samples from the stage filter" if not samples else "view pairs from the stage multiview"
        raise StageError(f"the curriculum has no {lacking}; it needs both.")
    curve = write_plan(context.output.resolve() / "plan", recipe, scratch, context.config.run.seed, context.report)
    plot_plan(curve, recipe, context.output / "plan.png")
    context.report.picture("plan", context.output / "plan.png")
    return StageResult(
        rows={"plan": recipe.steps * recipe.batch_size},
        metrics={
            "multiview_share": float(pc.mean(curve["multiview_share"]).as_py()),
            "mean_crop_ratio": float(pc.mean(curve["mean_crop_ratio"]).as_py()),
        },
    )


def recipe_of(settings: CurriculumConfig) -> Recipe:
    """The configuration in the words of `model.training.task.curriculum`."""
    return Recipe(
        steps=settings.steps,
        batch_size=settings.batch_size,
        r_min=settings.min_crop_ratio,
        r_max=settings.max_crop_ratio,
        multiview=settings.multiview_probability,
        crops=settings.crops,
    )


def map_columns(folder: Path, schema: pa.Schema, columns: list[str], file: Path) -> int:
    """Write some columns of a dataset to an Arrow file that tasks can map; returns the number of rows.

    Raises:
        StageError: There is no such dataset, or it has other columns.
    """
    rows = 0
    wanted = pa.schema([schema.field(name) for name in columns])
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, wanted) as writer:
        for part in dataset_files(folder):
            check_columns(part, pq.read_schema(part), schema, columns)
            for batch in pq.ParquetFile(part).iter_batches(_ROWS_PER_PART, columns=columns):
                writer.write_table(pa.Table.from_batches([batch]).cast(wanted))
                rows += batch.num_rows
    return rows


def write_plan(folder: Path, recipe: Recipe, scratch: Path, seed: int, report: Reporter) -> pa.Table:
    """Write all parts of the plan; returns what `summarize` says of every step, in order."""
    per_part = max(1, _ROWS_PER_PART // recipe.batch_size)
    plan_part = ray.remote(write_plan_part)
    waiting = [
        plan_part.remote(folder, number, range(first, min(first + per_part, recipe.steps)), recipe, scratch, seed)
        for number, first in enumerate(range(0, recipe.steps, per_part))
    ]
    curves = []
    for number, summary in enumerate(waiting, start=1):
        curves.append(ray.get(summary))
        report.progress(min(number * per_part, recipe.steps), recipe.steps, "planning training steps")
    return pa.concat_tables(curves)


def write_plan_part(folder: Path, number: int, steps: range, recipe: Recipe, scratch: Path, seed: int) -> pa.Table:
    """Write the rows of some steps as part `number` of the plan; returns their summary."""
    with (
        pa.memory_map(str(scratch / "samples.arrow")) as samples_file,
        pa.memory_map(str(scratch / "pairs.arrow")) as pairs_file,
    ):
        samples = pa.ipc.open_file(samples_file).read_all()
        pairs = pa.ipc.open_file(pairs_file).read_all()
        plan = plan_steps(steps, samples, pairs, recipe, seed)
    write_part(folder, number, plan, PLAN)
    return summarize(plan, recipe.batch_size)


def plan_steps(steps: Sequence[int], samples: pa.Table, pairs: pa.Table, recipe: Recipe, seed: int) -> pa.Table:
    """The rows (schema PLAN) of some steps.

    A generic sample is its own reference; a pair of views is described by its category alone.
    """
    draws = [draw_step(recipe, step, seed) for step in steps]
    is_multiview = pa.array(np.concatenate([draw.is_multiview for draw in draws]))
    choice = np.concatenate([draw.choice for draw in draws])
    place = np.concatenate([draw.crop_position for draw in draws])
    sample = samples.take(pa.array((choice * samples.num_rows).astype(np.int64)))
    pair = pairs.take(pa.array((choice * pairs.num_rows).astype(np.int64)))
    category_caption = pc.binary_join_element_wise("a photo of a", pair["category"], " ")
    columns = {
        "step": np.repeat(np.array(steps), recipe.batch_size),
        "slot": np.tile(np.arange(recipe.batch_size), len(steps)),
        "source": pc.if_else(is_multiview, "multiview", "image_text"),
        "reference_id": pc.if_else(is_multiview, pair["reference_frame_id"], sample["sample_id"]),
        "target_id": pc.if_else(is_multiview, pair["target_frame_id"], sample["sample_id"]),
        "caption": pc.if_else(is_multiview, category_caption, sample["caption"]),
        "crop_ratio": np.concatenate([draw.crop_ratio for draw in draws]),
        "crop_x": place[:, 0],
        "crop_y": place[:, 1],
        "target_crop_x": place[:, 2],
        "target_crop_y": place[:, 3],
    }
    return pa.table(columns).cast(PLAN)


def summarize(plan: pa.Table, batch_size: int) -> pa.Table:
    """One row a step: the share of view pairs, the mean crop ratio, and the crop ratio of the first example."""
    is_multiview = pc.equal(plan["source"], "multiview").to_numpy().reshape(-1, batch_size)
    ratio = plan["crop_ratio"].to_numpy().reshape(-1, batch_size)
    return pa.table(
        {
            "multiview_share": is_multiview.mean(1),
            "mean_crop_ratio": ratio.mean(1, dtype=np.float64),
            "crop_ratio": ratio[:, 0],
        }
    )


def plot_plan(curve: pa.Table, recipe: Recipe, file: Path) -> None:
    """Draw the steps' summaries against what the recipe asks for."""
    bins = np.linspace(0, recipe.steps, min(recipe.steps, 40) + 1)
    share = curve["multiview_share"].to_numpy()
    step = np.arange(recipe.steps)
    binned = np.histogram(step, bins, weights=share)[0] / np.histogram(step, bins)[0]
    shown = np.unique(np.linspace(0, recipe.steps - 1, _SHOWN_STEPS, dtype=np.int64))
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.bar((bins[1:] + bins[:-1]) / 2, binned, width=bins[1] - bins[0], color="tab:blue", alpha=0.5, label="drawn")
    name = "Eq. 10" if recipe.multiview is None else "as configured"
    left.plot(shown, [recipe.multiview_share(int(s)) for s in shown], color="black", label=name)
    left.set(xlabel="step", ylabel="share of view pairs", ylim=(0, 1))
    ratio = curve["crop_ratio"].to_numpy()[shown]
    right.scatter(shown, ratio, s=1, alpha=0.5, color="tab:orange", label="drawn, one a step")
    name = "r_cur, Eq. 11" if recipe.crops == "curriculum" else "r_max"
    right.plot(shown, [recipe.largest_crop_ratio(int(s)) for s in shown], color="black", label=name)
    right.set(xlabel="step", ylabel="crop ratio r of the reference")
    for axes in (left, right):
        axes.legend(loc="upper left")
    figure.savefig(file, dpi=110)
