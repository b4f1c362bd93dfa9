"""Stage `curriculum`: the training plan, with one row for each training example, on Ray.

RealCustom++ trains by its curriculum (Eqs. 10-11). RealCustom trains on generic text-image samples only, each of which
is its own reference: `curriculum.multiview_probability=0`, `curriculum.max_crop_ratio=1`.

The rows of a step depend only on the seed and the step's number, not on the workers. All parts of the plan but the last
hold the same number of steps, so that a reader can start at any step. Ids, captions and sizes of samples and pairs are
memory-mapped; on a cluster each node has a copy of them on its disk. Of all this only the ids and sizes of the frames
need to fit in memory, and once a part of the plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from model.training.curriculum import Recipe, StepDraws, draw_step
from model.training.target_sizes import PictureSize, TargetSizes, nearest_buckets
from stages.contract import Reporter, StageContext, StageError, StageResult
from stages.curriculum.config import CurriculumConfig
from stages.data.datasets import read_dataset, read_parts, write_part
from stages.data.plan import target_sizes
from stages.data.schemas import FRAMES, PAIRS, PLAN, SAMPLES
from stages.local_copies import local_copy
from stages.ray_tools.mapping import Progress, Workers, map_on_workers, one_row_batches
from stages.storage import StorePath, absolute, open_output

_ROWS_PER_PART = 2**17
_SAMPLE_COLUMNS = ["sample_id", "caption", "height", "width", "original_height", "original_width"]
_PAIR_COLUMNS = ["reference_frame_id", "target_frame_id", "category"]
_SIZES = pa.schema([pa.field(name, pa.int32(), nullable=False) for name in ("height", "width")])
_SHOWN_STEPS = 5000


def run(context: StageContext) -> StageResult:
    """Write `plan/` and `plan.png`."""
    recipe, sizes = recipe_of(context.config.curriculum), target_sizes(context.config)
    scratch = absolute(context.scratch)
    samples, pairs = map_examples(context.inputs, scratch)
    if not samples or not pairs:
        lacking = "samples from the stage filter" if not samples else "view pairs from the stage multiview"
        raise StageError(f"the curriculum has no {lacking}; it needs both.")
    curve = write_plan(
        absolute(context.output) / "plan", recipe, sizes, scratch, context.config.run.seed, context.report
    )
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


def map_examples(inputs: Mapping[str, StorePath], scratch: StorePath) -> tuple[int, int]:
    """Write samples and pairs to Arrow files that tasks can memory-map; returns their numbers.

    The height and width of a pair are those of its target.

    Raises:
        StageError: A dataset is missing, or has other columns.
    """
    samples = read_parts(inputs["filter"] / "samples", SAMPLES, _SAMPLE_COLUMNS)
    pairs = _with_sizes(inputs["multiview"], read_parts(inputs["multiview"] / "pairs", PAIRS, _PAIR_COLUMNS))
    wanted = pa.schema([SAMPLES.field(name) for name in _SAMPLE_COLUMNS])
    sized = pa.schema([*(PAIRS.field(name) for name in _PAIR_COLUMNS), *_SIZES])
    return _map(samples, wanted, scratch / "samples.arrow"), _map(pairs, sized, scratch / "pairs.arrow")


def _map(parts: Iterable[pa.Table], schema: pa.Schema, file: StorePath) -> int:
    rows = 0
    with open_output(file) as sink, pa.ipc.new_file(sink, schema) as writer:
        for part in parts:
            writer.write_table(part.cast(schema))
            rows += part.num_rows
    return rows


def _with_sizes(multiview: StorePath, pairs: Iterable[pa.Table]) -> Iterator[pa.Table]:
    frames = read_dataset(multiview / "frames", FRAMES, ["frame_id", *_SIZES.names])
    for part in pairs:
        found = pc.index_in(part["target_frame_id"], value_set=frames["frame_id"])
        if found.null_count:
            lost = part["target_frame_id"].filter(pc.is_null(found))[0]
            raise StageError(
                f"frame {lost} of a view pair is not in {multiview / 'frames'}; run the stage multiview again."
            )
        for name in _SIZES.names:
            part = part.append_column(_SIZES.field(name), frames[name].take(found))
        yield part


def write_plan(
    folder: StorePath, recipe: Recipe, sizes: TargetSizes, scratch: StorePath, seed: int, report: Reporter
) -> pa.Table:
    """Write all parts of the plan; returns the summary of each step, in order (see `summarize`)."""
    per_part = max(1, _ROWS_PER_PART // recipe.batch_size)
    parts = [
        {"number": number, "first": first, "end": min(first + per_part, recipe.steps)}
        for number, first in enumerate(range(0, recipe.steps, per_part))
    ]
    summaries = map_on_workers(
        _write_part,
        one_row_batches(parts),
        arguments={"folder": folder, "recipe": recipe, "sizes": sizes, "scratch": scratch, "seed": seed},
        workers=Workers(),
        progress=Progress(
            report=report,
            total=recipe.steps,
            note="planning training steps",
            amount=lambda summary: summary.num_rows,
        ),
    )
    return pa.concat_tables(summaries)


def _write_part(
    batch: pa.Table, folder: StorePath, recipe: Recipe, sizes: TargetSizes, scratch: StorePath, seed: int
) -> pa.Table:
    (part,) = batch.to_pylist()
    return write_plan_part(folder, part["number"], range(part["first"], part["end"]), recipe, sizes, scratch, seed)


def write_plan_part(
    folder: StorePath, number: int, steps: range, recipe: Recipe, sizes: TargetSizes, scratch: StorePath, seed: int
) -> pa.Table:
    """Write the rows of some steps as part `number` of the plan; returns their summary."""
    with (
        pa.memory_map(str(local_copy(scratch / "samples.arrow"))) as samples_file,
        pa.memory_map(str(local_copy(scratch / "pairs.arrow"))) as pairs_file,
    ):
        samples = pa.ipc.open_file(samples_file).read_all()
        pairs = pa.ipc.open_file(pairs_file).read_all()
        plan = plan_steps(steps, samples, pairs, recipe, sizes, seed)
    write_part(folder, number, plan, PLAN)
    return summarize(plan, recipe.batch_size)


def plan_steps(
    steps: Sequence[int], samples: pa.Table, pairs: pa.Table, recipe: Recipe, sizes: TargetSizes, seed: int
) -> pa.Table:
    """The rows (schema `PLAN`) of some steps.

    A generic sample is its own reference. The caption of a pair of views names only its category. In a bucket the crop
    of a target is its central one, so that a picture has one latent; a random one would hardly show anything else.
    """
    draws = [draw_step(recipe, step, seed) for step in steps]
    chosen = _choose(steps, draws, samples, pairs, recipe, sizes)
    is_multiview = pa.array(np.concatenate([choice.is_multiview for choice in chosen]))
    sample = samples.take(pa.array(np.concatenate([choice.sample for choice in chosen])))
    pair = pairs.take(pa.array(np.concatenate([choice.pair for choice in chosen])))
    category_caption = pc.binary_join_element_wise("a photo of a", pair["category"], " ")
    crop = np.concatenate([draw.crop_position for draw in draws])
    target_crop = crop[:, 2:] if sizes.bucket_multiple is None else np.full((len(crop), 2), 0.5)
    target = np.repeat([choice.size for choice in chosen], recipe.batch_size, axis=0)
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
        "target_crop_x": target_crop[:, 0],
        "target_crop_y": target_crop[:, 1],
        "height": target[:, 0],
        "width": target[:, 1],
        "original_height": pc.if_else(is_multiview, pair["height"], sample["original_height"]),
        "original_width": pc.if_else(is_multiview, pair["width"], sample["original_width"]),
    }
    return pa.table(columns).cast(PLAN)


class _Choice(NamedTuple):
    """The examples of a step: B rows of either source, and which of the two each example is."""

    size: PictureSize
    is_multiview: NDArray[np.bool_]
    sample: NDArray[np.int64]
    pair: NDArray[np.int64]


def _choose(
    steps: Sequence[int],
    draws: Sequence[StepDraws],
    samples: pa.Table,
    pairs: pa.Table,
    recipe: Recipe,
    sizes: TargetSizes,
) -> list[_Choice]:
    """Choose the examples of each step from one bucket.

    A bucket is as likely as an example of it, and in it the share of view pairs is the one that leaves every example
    over all steps as likely as without buckets.
    """
    found: list[_Choice] = []
    buckets: list[PictureSize] = []
    for step, draw in zip(steps, draws, strict=True):
        if buckets != (now := sizes.of(step)):
            buckets = now
            of_samples, of_pairs = _Bucketed(samples, buckets), _Bucketed(pairs, buckets)
        share = recipe.multiview_share(step)
        multiview, generic = share * of_pairs.shares, (1 - share) * of_samples.shares
        both = multiview + generic
        edges = np.cumsum(both)
        bucket = min(int(np.searchsorted(edges, draw.bucket * edges[-1], side="right")), int(np.flatnonzero(both)[-1]))
        is_multiview = draw.source < multiview[bucket] / both[bucket]
        rows = (table.rows(bucket, draw.choice) for table in (of_samples, of_pairs))
        found.append(_Choice(buckets[bucket], is_multiview, *rows))
    return found


class _Bucketed:
    """The rows of a table by the bucket of their size."""

    def __init__(self, table: pa.Table, buckets: Sequence[PictureSize]) -> None:
        bucket = nearest_buckets(table["height"].to_numpy(), table["width"].to_numpy(), buckets)
        self._order = np.argsort(bucket, kind="stable")
        self._starts = np.searchsorted(bucket[self._order], np.arange(len(buckets) + 1))
        self.shares = np.diff(self._starts) / len(bucket)

    def rows(self, bucket: int, choice: NDArray[np.float64]) -> NDArray[np.int64]:
        """The rows (B,) that `choice` (B,) in [0, 1) selects; of an empty bucket any ones, for no example is of it."""
        start, end = self._starts[bucket], self._starts[bucket + 1]
        chosen = start + (choice * (end - start)).astype(np.int64)
        return self._order[np.minimum(chosen, len(self._order) - 1)]


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
