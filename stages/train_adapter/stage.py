"""Stage `train_adapter`: the adapter's training on the plan (RealCustom, RealCustom++); writes `adapter/`.

`model/training/adapter_task.py` makes the examples, `stages/training/trainer.py` runs the steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from model.methods.registry import METHODS
from model.training.adapter_previews import PreviewSubject
from model.training.adapter_task import AdapterTask
from model.training.precision import HALVES
from stages.contract import StageContext, StageError, StageResult
from stages.data.encodings import StoredEncodings
from stages.data.plan import PlanPictures, PlanReader, check_plan, target_sizes
from stages.inference import backbone_location, backbone_setting, loading_options, model_errors_as_stage_errors
from stages.local_copies import local_copy
from stages.storage import StorePath, absolute, copy_folder, local_folder
from stages.train_adapter.config import TrainAdapterConfig
from stages.train_adapter.previews import choose_previews, draw_overview
from stages.training.trainer import Curves, fit


def run(context: StageContext) -> StageResult:
    """Train the adapter; write it to `adapter/`, its curves to `curves.png`, its previews to `samples.png`."""
    config = context.config.train_adapter
    plan = PlanReader(absolute(context.inputs["curriculum"]) / "plan")
    _check(config, plan)
    pictures = PlanPictures.of(context.inputs)
    check_plan(plan, pictures)
    task = adapter_task(context, plan)
    if isinstance(task.cache, StoredEncodings):
        with model_errors_as_stage_errors():
            task.cache.check_plan(plan, pictures)
    weights, curves = fit(
        task,
        steps=plan.steps,
        config=config.trainer,
        context=context,
        name="adapter",
        seed=context.config.run.seed,
        section="train_adapter.trainer",
        batch_size=math.gcd(*plan.batch_sizes()),
        batch_setting="curriculum.batch_size",
        data_workers=config.data_workers,
        backbone_setting=backbone_setting(context.config.backbone),
    )
    copy_folder(weights, context.output / "adapter")
    _draw(curves, weights.with_name("adapter-samples"), task.preview_subjects, context)
    return StageResult(metrics=_summary(curves), notes={"steps": str(plan.steps)})


def _draw(curves: Curves, previews: StorePath, subjects: Sequence[PreviewSubject], context: StageContext) -> None:
    """Write and report the pictures of the training."""
    pictures = ["curves"]
    with local_folder(context.output) as folder:
        plot_training(curves, folder / "curves.png")
        if any(previews.glob("*.png")):
            draw_overview(local_copy(previews), subjects, folder / "samples.png")
            pictures.append("samples")
    for name in pictures:
        context.report.picture(name, context.output / f"{name}.png")


def _check(config: TrainAdapterConfig, plan: PlanReader) -> None:
    """Refuse a plan that does not fit the settings: it may have been made elsewhere."""
    for size in plan.batch_sizes():
        if size % config.trainer.workers:
            raise StageError(
                f"a step's {size} examples cannot be divided evenly among train_adapter.trainer.workers="
                f"{config.trainer.workers}: set curriculum.batch_size to a multiple of it."
            )
    method = METHODS[config.method]
    if method.reference_is_target and not plan.references_are_targets:
        raise StageError(
            f"train_adapter.method={method.name} learns from pictures that are their own references, but this plan has "
            "pairs of views: set curriculum.multiview_probability=0 and curriculum.max_crop_ratio=1."
        )


def adapter_task(context: StageContext, plan: PlanReader) -> AdapterTask:
    """The training problem that the configuration describes."""
    config = context.config.train_adapter
    inputs = {name: absolute(folder) for name, folder in context.inputs.items()}
    pictures = PlanPictures.of(context.inputs)
    return AdapterTask(
        backbone=backbone_location(context.config.backbone, inputs),
        encoders=loading_options(context.config.backbone),
        rows=plan,
        picture=pictures,
        phases=target_sizes(context.config).phases,
        drop_text=config.drop_text,
        drop_image=config.drop_image,
        drop_both=config.drop_both,
        seed=context.config.run.seed,
        method=config.method,
        cross_layer=config.cross_layer,
        cross_scale=config.cross_scale,
        score_fusion=config.score_fusion,
        min_snr_gamma=config.min_snr_gamma,
        noises_per_example=config.noises_per_example,
        half=HALVES.get(config.trainer.precision),
        gradient_checkpointing=config.gradient_checkpointing,
        cache=StoredEncodings.of(inputs["cache_latents"]) if "cache_latents" in inputs else None,
        preview_subjects=() if config.sample_every is None else choose_previews(pictures.frames, config.sample_prompts),
        preview_settings=context.config.inference,
        sample_every=config.sample_every,
        device="cuda" if config.trainer.use_gpu else "cpu",
    )


def plot_training(curves: Curves, file: Path) -> None:
    """Draw the measured curves into a PNG, related ones in the same panel."""
    figure = Figure(figsize=(14, 9.6), layout="constrained")
    panels = {
        "loss": ["loss"],
        "loss by source": ["loss/image_text", "loss/multiview"],
        "loss by timestep": [key for key in curves if key.startswith("loss/t_")],
        "gain over the base": ["gain"],
        "curriculum": ["multiview_share", "crop_ratio"],
        "gradient norm": ["grad_norm"],
        "learning rate": ["learning_rate"],
        "samples a second": ["samples_per_second"],
        "share of time spent waiting for data": ["data_wait"],
    }
    for axes, (title, keys) in zip(figure.subplots(3, 3, squeeze=False).flat, panels.items(), strict=True):
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
    """The moving average over a twentieth of the values; at the ends, over fewer."""
    window = np.ones(len(values) // 20 + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _summary(curves: Curves) -> dict[str, float]:
    """The mean of every curve over its last quarter."""
    return {
        key: float(np.mean([value for _, value in points[-(len(points) // 4 + 1) :]])) for key, points in curves.items()
    }
