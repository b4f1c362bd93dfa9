"""The section `compute`: with what a run computes, said once for the stages that train or paint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from model.settings import STRICT, PositiveInt
from stages.settings import Operation

Precision = Literal["fp32", "bf16", "fp16"]

_TRAINERS = ("train_adapter.trainer", "contextualizer.trainer", "customize.trainer")
_OTHERS_ON_GPUS = ("filter.scoring", "base", "cache_latents", "evaluate", "serve")

#: The settings of sections that have the value of a setting of `compute` unless they are set themselves.
FOLLOWERS: Mapping[str, tuple[str, ...]] = {
    "compute.workers": (*(f"{name}.workers" for name in (*_TRAINERS, "base", "evaluate")), "cache_latents.actors"),
    "compute.min_workers": tuple(f"{name}.min_workers" for name in (*_TRAINERS, "base")),
    "compute.use_gpu": tuple(f"{name}.use_gpu" for name in (*_TRAINERS, *_OTHERS_ON_GPUS)),
    "compute.precision": tuple(f"{name}.precision" for name in _TRAINERS),
}


def precision_problem(precision: Precision, use_gpu: bool) -> str | None:
    """Why a precision cannot be had; None: it can."""
    if precision != "fp16" or use_gpu:
        return None
    return "precision=fp16 needs GPUs; set compute.use_gpu to true, or precision to fp32 or bf16"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ComputeConfig:
    """With what the run computes. The sections of stages have settings of the same names, which have these values
    unless a profile or `--set` gives them their own.
    """

    workers: Operation[PositiveInt] = 2
    """Processes that train or paint, a CPU or a GPU each."""
    min_workers: Operation[PositiveInt | None] = None
    """A training goes on with as few as this when a cluster has no more for it; null: it waits for all."""
    use_gpu: Operation[bool] = False
    """Train, score and paint on GPUs."""
    precision: Precision = "fp32"
    """Of a training's forward pass, by autocast; the weights stay fp32."""

    @model_validator(mode="after")
    def _fits_together(self) -> ComputeConfig:
        if problem := precision_problem(self.precision, self.use_gpu):
            raise ValueError(problem)
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers={self.min_workers} is above workers={self.workers}; lower it, or raise that")
        return self
