"""The settings of the stage `curriculum`."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, MultipleOf
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from model.settings import STRICT, Pixels, PositiveInt, Share

CropRatio = Annotated[float, Ge(1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CurriculumConfig:
    """The training plan (RealCustom++ Eqs. 10-11). One row a training example; the adapter trains for `steps`.

    `model.training.curriculum.Recipe` has the settings of all rows of the paper's Table X.
    """

    steps: PositiveInt = 440
    batch_size: PositiveInt = 8
    """Examples of a step, over all workers."""
    multiview_probability: Share | None = None
    """null: grows from 0 to 1 (Eq. 10); RealCustom needs 0."""
    min_crop_ratio: CropRatio = 1.0
    """r_min."""
    max_crop_ratio: CropRatio = 1.5
    """r_max: at least 1 / r_max^2 of the area; the paper's is sqrt(10), too small a part of 64 pixels; 1: no crops."""
    crops: Literal["curriculum", "random"] = "curriculum"
    """Up to r_cur of Eq. 11, or always up to r_max."""
    bucket_multiple: Annotated[Pixels, MultipleOf(8)] | None = None
    """Targets keep their aspect ratio up to 4:1 (buckets), with sides that are multiples of this; 64 is usual; null:
    they are random squares."""
    first_resolution: Annotated[Pixels, MultipleOf(8)] | None = None
    """Side of the targets in a first phase, pixels; null: `backbone.resolution` in all steps."""
    first_share: Share = 0.5
    """Share of the steps that the first phase has."""

    @model_validator(mode="after")
    def _ratios_fit(self) -> CurriculumConfig:
        if self.min_crop_ratio > self.max_crop_ratio:
            raise ValueError(
                f"min_crop_ratio is {self.min_crop_ratio:g}; set it to at most max_crop_ratio, which is "
                f"{self.max_crop_ratio:g}"
            )
        return self
