"""Stage `curriculum`: the training plan, with one row for each training example, on Ray.

RealCustom++ trains by its curriculum (Eqs. 10-11). RealCustom trains on generic text-image samples only, each of which
is its own reference: `curriculum.multiview_probability=0`, `curriculum.max_crop_ratio=1`.

The rows of a step depend only on the seed and the step's number, not on the workers. All parts of the plan but the last
hold the same number of steps, so that a reader can start at any step. The ids and captions of samples and pairs are
memory-mapped; on a cluster each node has a copy of them on its disk. Neither they nor the plan need to fit in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model.training.curriculum import Recipe, draw_step
from stages.contract import Reporter, StageContext, StageError, StageResult
from stages.curriculum.config import CurriculumConfig
from stages.data.datasets import read_parts, write_part
from stages.data.schemas import PAIRS, PLAN, SAMPLES
from stages.local_copies import local_copy
from stages.ray_tools.mapping import Progress, Workers, map_on_workers, one_row_batches
from stages.storage import StorePath, absolute, open_output

_ROWS_PER_PART = 2**17
_SAMPLE_COLUMNS = ["sample_id", "caption"]
_PAIR_COLUMNS = ["reference_frame_id", "target_frame_id", "category"]
_SHOWN_STEPS = 5000


def run(context: StageContext) -> StageResult:
    """Write `plan/` and `plan.png`."""
    recipe = recipe_of(context.config.curriculum)
    scratch = absolute(context.scratch)
    samples = map_columns(context.inputs["filter"] / "samples", SAMPLES, _SAMPLE_COLUMNS, scratch / "samples.arrow")
    pairs = map_columns(context.inputs["multiview"] / "pairs", PAIRS, _PAIR_COLUMNS, scratch / "pairs.arrow")
    if not samples or not pairs:
        lacking = "samples from the stage filter" if not samples else "view pairs from the stage multiview"
        raise StageError(f"the curriculum has no {lacking}; it needs both.")
    curve = write_plan(absolute(context.output) / "plan", recipe, scratch, context.config.run.seed, context.report)
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
    """The recipe of `model.training.curriculum` for this configuration."""
    return Recipe(
        steps=settings.steps,
        batch_size=settings.batch_size,
        r_min=settings.min_crop_ratio,
        r_max=settings.max_crop_ratio,
        multiview=settings.multiview_probability,
        crops=settings.crops,
    )


def map_columns(folder: StorePath, schema: pa.Schema, columns: list[str], file: StorePath) -> int:
    """Write some columns of a dataset to an Arrow file that tasks can memory-map; returns the number of rows.

    Raises:
        StageError: There is no such dataset, or it has other columns.
    """
    rows = 0
    wanted = pa.schema([schema.field(name) for name in columns])
    with open_output(file) as sink, pa.ipc.new_file(sink, wanted) as writer:
        for part in read_parts(folder, schema, columns):
            writer.write_table(part.cast(wanted))
            rows += part.num_rows
    return rows


def write_plan(folder: StorePath, recipe: Recipe, scratch: StorePath, seed: int, report: Reporter) -> pa.Table:
    """Write all parts of the plan; returns the summary of each step, in order (see `summarize`)."""
    per_part = max(1, _ROWS_PER_PART // recipe.batch_size)
    parts = [
        {"number": number, "first": first, "end": min(first + per_part, recipe.steps)}
        for number, first in enumerate(range(0, recipe.steps, per_part))
    ]
    summaries = map_on_workers(
        _write_part,
        one_row_batches(parts),
        arguments={"folder": folder, "recipe": recipe, "scratch": scratch, "seed": seed},
        workers=Workers(),
        progress=Progress(
            report=report,
            total=recipe.steps,
            note="planning training steps",
            amount=lambda summary: summary.num_rows,
        ),
    )
    return pa.concat_tables(summaries)


def _write_part(batch: pa.Table, folder: StorePath, recipe: Recipe, scratch: StorePath, seed: int) -> pa.Table:
    (part,) = batch.to_pylist()
    return write_plan_part(folder, part["number"], range(part["first"], part["end"]), recipe, scratch, seed)


def write_plan_part(
    folder: StorePath, number: int, steps: range, recipe: Recipe, scratch: StorePath, seed: int
) -> pa.Table:
    """Write the rows of some steps as part `number` of the plan; returns their summary."""
    with (
        pa.memory_map(str(local_copy(scratch / "samples.arrow"))) as samples_file,
        pa.memory_map(str(local_copy(scratch / "pairs.arrow"))) as pairs_file,
    ):
        samples = pa.ipc.open_file(samples_file).read_all()
        pairs = pa.ipc.open_file(pairs_file).read_all()
        plan = plan_steps(steps, samples, pairs, recipe, seed)
    write_part(folder, number, plan, PLAN)
    return summarize(plan, recipe.batch_size)


def plan_steps(steps: Sequence[int], samples: pa.Table, pairs: pa.Table, recipe: Recipe, seed: int) -> pa.Table:
    """The rows (schema `PLAN`) of some steps.

    A generic sample is its own reference. The caption of a pair of views names only its category.
    """
    draws = [draw_step(recipe, step, seed) for step in steps]
    is_multiview = pa.array(np.concatenate([draw.is_multiview for draw in draws]))
    choice = np.concatenate([draw.choice for draw in draws])
    crop = np.concatenate([draw.crop_position for draw in draws])
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
        "crop_x": crop[:, 0],
        "crop_y": crop[:, 1],
        "target_crop_x": crop[:, 2],
        "target_crop_y": crop[:, 3],
    }
    return pa.table(columns).cast(PLAN)


def summarize(plan: pa.Table, batch_size: int) -> pa.Table:
    """A row for each step: the share of view pairs, the mean crop ratio, and the crop ratio of the first example."""
    is_multiview = pc.equal(plan["source"], "multiview").to_numpy().reshape(-1, batch_size)
    ratio = plan["crop_ratio"].to_numpy().reshape(-1, batch_size)
    return pa.table(
        {
            "multiview_share": is_multiview.mean(1),
            "mean_crop_ratio": ratio.mean(1, dtype=np.float64),
            "crop_ratio": ratio[:, 0],
        }
    )


def plot_plan(curve: pa.Table, recipe: Recipe, file: StorePath) -> None:
    """Plot the steps' summaries, and what the recipe prescribes."""
    shown = np.unique(np.linspace(0, recipe.steps - 1, _SHOWN_STEPS, dtype=np.int64))
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _plot_shares(left, curve, recipe, shown)
    right.scatter(
        shown, curve["crop_ratio"].to_numpy()[shown], s=1, alpha=0.5, color="tab:orange", label="drawn, one a step"
    )
    name = "r_cur, Eq. 11" if recipe.crops == "curriculum" else "r_max"
    right.plot(shown, [recipe.largest_crop_ratio(int(s)) for s in shown], color="black", label=name)
    right.set(xlabel="step", ylabel="crop ratio r of the reference")
    for axes in (left, right):
        axes.legend(loc="upper left")
    with open_output(file) as sink:
        figure.savefig(sink, dpi=110)


def _plot_shares(axes: Axes, curve: pa.Table, recipe: Recipe, shown: np.ndarray) -> None:
    """Plot the share of view pairs, averaged over bins of steps."""
    bins = np.linspace(0, recipe.steps, min(recipe.steps, 40) + 1)
    step = np.arange(recipe.steps)
    share = curve["multiview_share"].to_numpy()
    binned = np.histogram(step, bins, weights=share)[0] / np.histogram(step, bins)[0]
    axes.bar((bins[1:] + bins[:-1]) / 2, binned, width=bins[1] - bins[0], color="tab:blue", alpha=0.5, label="drawn")
    name = "Eq. 10" if recipe.multiview is None else "as configured"
    axes.plot(shown, [recipe.multiview_share(int(s)) for s in shown], color="black", label=name)
    axes.set(xlabel="step", ylabel="share of view pairs", ylim=(0, 1))
