"""The settings of the stage `base`."""

from __future__ import annotations

from dataclasses import field

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from model.micro_sd.recipe import PartRecipe, Recipe
from model.settings import STRICT, PositiveInt
from stages.settings import Operation


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BaseConfig:
    """The micro Stable Diffusion: the weights that ship with the code when the recipe is theirs, else trained."""

    recipe: Recipe = field(default_factory=Recipe)
    workers: Operation[PositiveInt] = 2
    """Processes that share each step's batch."""
    use_gpu: Operation[bool] = False

    @model_validator(mode="after")
    def _batches_fit(self) -> BaseConfig:
        parts: dict[str, PartRecipe] = {
            name: part for name, part in vars(self.recipe).items() if isinstance(part, PartRecipe)
        }
        for name, part in parts.items():
            if part.batch % self.workers:
                raise ValueError(
                    f"recipe.{name}.batch must be a multiple of workers = {self.workers}, not {part.batch}"
                )
        return self
