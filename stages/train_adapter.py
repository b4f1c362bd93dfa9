"""Stage `train_adapter`: the adapter's training on the plan (RealCustom, RealCustom++); writes `adapter/`.

The examples are made in `model/adapter_training.py`, the steps in `stages/trainer.py`.
"""

from __future__ import annotations

import shutil
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from numpy.typing import NDArray

from model.adapter_training import AdapterTask, PlanRow
from model.precision import HALVES
from stages.adapter_samples import choose_samples, draw_strip
from stages.config import TrainAdapterConfig
from stages.datasets import PictureStore, check_columns, dataset_files
from stages.inference import backbone_location, loading_options
from stages.schemas import PLAN
from stages.stage import StageContext, StageError, StageResult
from stages.trainer import Curves, absolute_location, fit


class PlanReader:
    """Step -> rows of the plan. Only the path travels to the workers; each holds one part of the plan at a time.

    A step lies in one part of the plan, as the stage `curriculum` writes it: reading may start at any.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._clear()

    def _clear(self) -> None:
        self._files: list[Path] = []
        self._first_steps: list[int] = []  # of each file, and the number of steps
        self._part = -1
        self._table: Any = None
        self._bounds: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder = state["folder"]
        self._clear()

    def __call__(self, step: int) -> Sequence[PlanRow]:
        """The rows of a step, counted from 0, by slot."""
        self._open()
        self._read_part(bisect_right(self._first_steps, step) - 1)
        place = step - self._first_steps[self._part]
        start, end = int(self._bounds[place]), int(self._bounds[place + 1])
        return [PlanRow(**row) for row in self._table.slice(start, end - start).to_pylist()]

    @property
    def steps(self) -> int:
        """Steps of the plan."""
        self._open()
        return self._first_steps[-1]

    @property
    def references_are_targets(self) -> bool:
        """Whether every picture is its own reference."""
        self._open()
        tables = (pq.read_table(file, columns=["reference_id", "target_id"]) for file in self._files)
        return all(pc.all(pc.equal(table["reference_id"], table["target_id"])).as_py() for table in tables)

    def batch_sizes(self) -> set[int]:
        """How many rows the steps have."""
        self._open()
        columns = (pq.read_table(file, columns=["step"])["step"].to_numpy() for file in self._files)
        return {int(size) for steps in columns for size in np.unique(steps, return_counts=True)[1]}

    def _open(self) -> None:
        if self._files:
            return
        files = dataset_files(self.folder)
        for file in files:
            check_columns(file, pq.read_schema(file), PLAN, ["step", *PlanRow._fields])
        ranges = [_range_of_steps(file) for file in files if pq.read_metadata(file).num_rows]
        if not ranges:
            raise StageError(f"{self.folder} holds no training example; run the stage curriculum again.")
        self._first_steps = [*(first for first, _ in ranges), ranges[-1][1] + 1]
        self._files = files[: len(ranges)]

    def _read_part(self, part: int) -> None:
        if part == self._part:
            return
        table = pq.read_table(self._files[part], columns=["step", *PlanRow._fields])
        steps = np.arange(self._first_steps[part], self._first_steps[part + 1] + 1)
        self._bounds = np.searchsorted(table["step"].to_numpy(), steps)
        self._table, self._part = table.select(list(PlanRow._fields)).combine_chunks(), part


def _range_of_steps(file: Path) -> tuple[int, int]:
    """The first and the last step of a part of the plan, from the file's footer."""
    metadata = pq.read_metadata(file)
    column = metadata.schema.names.index("step")
    groups = [metadata.row_group(number).column(column).statistics for number in range(metadata.num_row_groups)]
    return int(groups[0].min), int(groups[-1].max)


@dataclass(frozen=True)
class PlanPictures:
    """Id of the plan -> encoded picture: a sample of `filter` or a frame of `multiview`."""

    samples: PictureStore
    frames: PictureStore

    def __call__(self, picture_id: str) -> bytes:
        """Raises ValueError when neither has it."""
        for store in (self.samples, self.frames):
            if picture_id in store:
                return store[picture_id]
        raise ValueError(
            f"picture {picture_id} of the plan is neither in {self.samples.folder} nor in {self.frames.folder}; "
            "run the stage curriculum again."
        )


def run(context: StageContext) -> StageResult:
    """Train the adapter; write it to `adapter/`, its curves to `curves.png`, what it painted to `samples.png`."""
    config = context.config.train_adapter
    plan = PlanReader(context.inputs["curriculum"].resolve() / "plan")
    _check(config, plan)
    task = adapter_task(context, plan)
    weights, curves = fit(
        task,
        steps=plan.steps,
        config=config.trainer,
        context=context,
        name="adapter",
        seed=context.config.run.seed,
        batch_setting="curriculum.batch_size",
    )
    shutil.copytree(weights, context.output / "adapter")
    picture = context.output / "curves.png"
    plot_training(curves, picture)
    context.report.picture("curves", picture)
    looks = weights.with_name("adapter-samples")
    if any(looks.glob("*.png")):
        draw_strip(looks, task.samples, context.output / "samples.png")
        context.report.picture("samples", context.output / "samples.png")
    return StageResult(metrics=_summary(curves), notes={"steps": str(plan.steps)})


def _check(config: TrainAdapterConfig, plan: PlanReader) -> None:
    """Refuse what would fail later, or not fail but go wrong."""
    for size in plan.batch_sizes():
        if size % config.trainer.workers:
            raise StageError(
                f"{size} examples a step cannot be shared out among {config.trainer.workers} workers: set "
                "curriculum.batch_size to a multiple of train_adapter.trainer.workers."
            )
    if config.method == "realcustom" and not plan.references_are_targets:
        raise StageError(
            "RealCustom learns from pictures that are their own references, but this plan has pairs of views: set "
            "curriculum.multiview_probability=0 and curriculum.max_crop_ratio=1."
        )
    if config.min_snr_gamma is not None and config.min_snr_gamma <= 0:
        raise StageError(f"train_adapter.min_snr_gamma is {config.min_snr_gamma}: set it above 0, or to null for none.")
    if config.sample_every is not None and config.sample_every < 1:
        raise StageError(f"train_adapter.sample_every is {config.sample_every}: set it above 0, or to null for none.")
    if config.sample_every is not None and config.trainer.zero_stage == 3:
        raise StageError(
            "sample pictures need an adapter that is whole on one worker, and ZeRO stage 3 keeps it in pieces: set "
            "train_adapter.sample_every=null or train_adapter.trainer.zero_stage=2."
        )


def adapter_task(context: StageContext, plan: PlanReader) -> AdapterTask:
    """The training problem that the configuration describes."""
    config = context.config.train_adapter
    inputs = {name: folder.resolve() for name, folder in context.inputs.items()}
    frames = inputs["multiview"] / "frames"
    return AdapterTask(
        backbone=absolute_location(backbone_location(context.config.backbone, inputs)),
        encoders=loading_options(context.config.backbone),
        rows=plan,
        picture=PlanPictures(
            PictureStore(inputs["filter"] / "samples", "sample_id"),
            PictureStore(frames, "frame_id"),
        ),
        resolution=context.config.backbone.resolution,
        drop_text=config.drop_text,
        drop_image=config.drop_image,
        drop_both=config.drop_both,
        seed=context.config.run.seed,
        method=config.method,
        cross_layer=config.cross_layer,
        cross_scale=config.cross_scale,
        score_fusion=config.score_fusion,
        min_snr_gamma=config.min_snr_gamma,
        half=HALVES.get(config.trainer.precision),
        gradient_checkpointing=config.gradient_checkpointing,
        samples=() if config.sample_every is None else choose_samples(frames, config.sample_prompts),
        sample_every=config.sample_every,
        device="cuda" if config.trainer.use_gpu else "cpu",
    )


def plot_training(curves: Curves, file: Path) -> None:
    """Draw the curves, related ones in a panel together, into a PNG. What has not been measured is left out."""
    figure = Figure(figsize=(18, 6.4), layout="constrained")
    panels = {
        "loss": ["loss"],
        "loss by source": ["loss/image_text", "loss/multiview"],
        "loss by timestep": [key for key in curves if key.startswith("loss/t_")],
        "gain over the base": ["gain"],
        "curriculum": ["multiview_share", "crop_ratio"],
        "gradient norm": ["grad_norm"],
        "learning rate": ["learning_rate"],
        "samples a second": ["samples_per_second"],
    }
    for axes, (title, keys) in zip(figure.subplots(2, 4).flat, panels.items(), strict=True):
        for key in keys:
            if key in curves:
                steps, values = zip(*curves[key], strict=True)
                axes.plot(steps, _smoothed(values), linewidth=1, label=key)
        axes.set(xlabel="step", title=title)
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend(fontsize="small")
    figure.suptitle("Training of the adapter (means over a twentieth of the points)")
    figure.savefig(file, dpi=100)


def _smoothed(values: Sequence[float]) -> NDArray[np.float64]:
    """The mean of each value and its neighbours, a twentieth of all together; at the ends of those that there are."""
    window = np.ones(len(values) // 20 + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _summary(curves: Curves) -> dict[str, float]:
    """The mean of every curve over its last quarter."""
    return {
        key: float(np.mean([value for _, value in points[-(len(points) // 4 + 1) :]])) for key, points in curves.items()
    }
