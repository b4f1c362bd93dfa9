"""The settings of the stage `base`."""

from __future__ import annotations

from dataclasses import field

from pydantic.dataclasses import dataclass

from model.micro_sd.recipe import Recipe
from model.settings import STRICT, PositiveInt
from stages.settings import Operation


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BaseConfig:
    """The micro Stable Diffusion: the weights that ship with the code when the recipe is theirs, else trained."""

    recipe: Recipe = field(default_factory=Recipe)
    workers: Operation[PositiveInt] = 2
    """Processes, at most, that share each step's batch: as many as can share it evenly."""
    min_workers: Operation[PositiveInt | None] = None
    """It goes on with as few as this when a cluster has no more for it; null: it waits for all."""
    use_gpu: Operation[bool] = False
