"""Stage `curriculum`: the training plan, one row a training example, with Ray Data.

RealCustom++ trains by its curriculum (Eqs. 10-11). RealCustom trains on generic text-image samples alone, each its own
reference: `curriculum.multiview_probability=0`, `curriculum.max_crop_ratio=1`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from matplotlib.figure import Figure

from model.curriculum import draw_step, max_crop_ratio, multiview_probability
from stages.config import CurriculumConfig
from stages.datasets import read_dataset, write_part
from stages.schemas import PAIRS, PLAN, SAMPLES
from stages.stage import StageContext, StageError, StageResult

_STEPS_PER_TASK = 250


def run(context: StageContext) -> StageResult:
    """Write `plan/` and `plan.png`."""
    settings, seed = context.config.curriculum, context.config.run.seed
    if settings.steps < 1 or settings.batch_size < 1:
        raise StageError("curriculum.steps and curriculum.batch_size must be at least 1.")
    if not 1 <= settings.min_crop_ratio <= settings.max_crop_ratio:
        raise StageError("the curriculum needs 1 <= curriculum.min_crop_ratio <= curriculum.max_crop_ratio.")
    if settings.multiview_probability is not None and not 0 <= settings.multiview_probability <= 1:
        raise StageError("curriculum.multiview_probability must lie between 0 and 1, or be null for Eq. 10.")
    samples = read_dataset(context.inputs["filter"] / "samples", SAMPLES, columns=["sample_id", "caption"])
    pairs = read_dataset(
        context.inputs["multiview"] / "pairs", PAIRS, columns=["reference_frame_id", "target_frame_id", "category"]
    )
    if not samples.num_rows or not pairs.num_rows:
        lacking = "samples from the stage filter" if not samples.num_rows else "view pairs from the stage multiview"
        raise StageError(f"the curriculum has no {lacking}; it needs both.")
    drawn = Counter[str]()
    curve = []
    for number, part in enumerate(draw_plan(samples, pairs, settings, seed)):
        write_part(context.output / "plan", number, part, PLAN)
        drawn.update(part["source"].to_pylist())
        curve.append(part.select(["step", "source", "crop_ratio"]))
        context.report.progress(drawn.total() // settings.batch_size, settings.steps, "planning training steps")
    plan = pa.concat_tables(curve)
    plot_plan(plan, settings, context.output / "plan.png")
    context.report.picture("plan", context.output / "plan.png")
    return StageResult(
        rows={"plan": drawn.total()},
        metrics={
            "multiview_share": drawn["multiview"] / drawn.total(),
            "mean_crop_ratio": float(pc.mean(plan["crop_ratio"]).as_py()),
        },
    )


def draw_plan(samples: pa.Table, pairs: pa.Table, settings: CurriculumConfig, seed: int) -> Iterator[pa.Table]:
    """All steps' rows (schema PLAN), in order, `_STEPS_PER_TASK` steps a table."""
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    steps = ray.data.range(settings.steps, override_num_blocks=math.ceil(settings.steps / _STEPS_PER_TASK))
    drawn = steps.map_batches(
        plan_steps,
        fn_args=(ray.put(samples), ray.put(pairs)),
        fn_kwargs={"settings": settings, "seed": seed},
        batch_format="pyarrow",
        batch_size=None,
    )
    yield from drawn.iter_batches(batch_format="pyarrow", batch_size=None)


def plan_steps(batch: pa.Table, samples: Any, pairs: Any, settings: CurriculumConfig, seed: int) -> pa.Table:
    """The rows (schema PLAN) of the steps in the column `id`.

    A generic sample is its own reference; a pair of views is described by its category alone.
    """
    samples, pairs = (ray.get(table) if isinstance(table, ray.ObjectRef) else table for table in (samples, pairs))
    steps = batch["id"].to_numpy()
    ratios = (settings.min_crop_ratio, settings.max_crop_ratio)
    constants = settings.steps, settings.batch_size, *ratios, seed, settings.multiview_probability
    draws = [draw_step(int(step), *constants) for step in steps]
    is_multiview = pa.array(np.concatenate([draw.is_multiview for draw in draws]))
    choice = np.concatenate([draw.choice for draw in draws])
    place = np.concatenate([draw.crop_place for draw in draws])
    sample = samples.take((choice * samples.num_rows).astype(np.int64))
    pair = pairs.take((choice * pairs.num_rows).astype(np.int64))
    category_caption = pc.binary_join_element_wise("a photo of a", pair["category"], " ")
    columns = {
        "step": np.repeat(steps, settings.batch_size),
        "slot": np.tile(np.arange(settings.batch_size), len(steps)),
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


def plot_plan(plan: pa.Table, settings: CurriculumConfig, file: Path) -> None:
    """Draw the plan's columns step, source and crop_ratio against what Eqs. 10-11 ask for."""
    step = plan["step"].to_numpy()
    is_multiview = np.array(plan["source"].to_pylist()) == "multiview"
    bins = np.linspace(0, settings.steps, min(settings.steps, 40) + 1)
    count = np.histogram(step, bins)[0]
    share = np.histogram(step[is_multiview], bins)[0] / np.maximum(count, 1)
    centres = (bins[1:] + bins[:-1]) / 2
    steps = range(settings.steps)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.bar(centres, share, width=bins[1] - bins[0], color="tab:blue", alpha=0.5, label="drawn")
    if settings.multiview_probability is None:
        wanted, name = [multiview_probability(s, settings.steps) for s in steps], "Eq. 10"
    else:
        wanted, name = [settings.multiview_probability] * settings.steps, "as configured"
    left.plot(steps, wanted, color="black", label=name)
    left.set(xlabel="step", ylabel="share of view pairs", ylim=(0, 1))
    right.scatter(step, plan["crop_ratio"].to_numpy(), s=1, alpha=0.3, color="tab:orange", label="drawn")
    ratios = (settings.min_crop_ratio, settings.max_crop_ratio)
    right.plot(steps, [max_crop_ratio(s, settings.steps, *ratios) for s in steps], color="black", label="r_cur, Eq. 11")
    right.set(xlabel="step", ylabel="crop ratio r of the reference")
    for axes in (left, right):
        axes.legend(loc="upper left")
    figure.savefig(file, dpi=110)
