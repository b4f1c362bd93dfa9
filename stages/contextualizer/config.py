"""The settings of the stage `contextualizer`."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from model.settings import STRICT, PositiveInt
from stages.training.config import TrainerConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ContextualizerConfig:
    """Masked language modelling on the prompt sets: psi and the mask embedding (Contextualizer, Algorithm 1)."""

    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(workers=1, zero_stage=2))
    steps: PositiveInt = 300
    batch_size: PositiveInt = 64
    """Prompts of a step, over all workers."""
    layers: Annotated[int, Ge(1), Le(64)] = 4
    """Transformer layers of psi."""
    mask_rate: Annotated[float, Gt(0), Lt(1)] = 0.15
    """Share of the tokens that are masked."""

    @model_validator(mode="after")
    def _batch_fits(self) -> ContextualizerConfig:
        if problem := self.trainer.batch_problem(self.batch_size, "contextualizer.trainer"):
            raise ValueError(f"batch_size {problem}")
        return self
