"""The settings of mask-guided inference. Imports nothing heavy: the configuration has a section of this type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import AfterValidator, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from model.errors import GenerationError
from model.settings import STRICT, NonNegativeFloat, PositiveInt, Words


def _power_of_two(value: int) -> int:
    if value < 1 or value & (value - 1):
        raise ValueError("not a power of two")
    return value


#: DDIM is the papers'; dpm is the single-step DPM-Solver++ with which RealCustom++'s authors use their weights.
Sampler = Literal["ddim", "dpm"]
#: The maps of a mask's layers are averaged as they are (the papers), or each from its minimum to its maximum.
MaskNormalization = Literal["max_norm", "min_max_per_channel"]
Downscale = Annotated[int, Ge(1), Le(64), AfterValidator(_power_of_two), Words("a power of two from 1 to 64")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class InferenceSettings:
    """How the pipeline denoises (RealCustom Sec. 3.3, RealCustom++ Sec. III-D)."""

    steps: Annotated[int, Ge(1), Le(1000)] = 25
    """Denoising steps."""
    sampler: Sampler = "ddim"
    """ddim (the papers'), or dpm: the single-step DPM-Solver++ of the code of RealCustom++'s authors."""
    guidance_scale: NonNegativeFloat = 5.0
    """omega of RealCustom++'s Eq. 15, omega_t of RealCustom's Eq. 13."""
    image_guidance_scale: NonNegativeFloat = 8.0
    """omega_i of RealCustom's Eq. 13; RealCustom++ has none."""
    gamma_num: Annotated[float, Gt(0), Le(1)] = 0.8
    """Share of the image tokens that RealCustom's scoring module keeps."""
    mask_scope: Annotated[float, Gt(0), Le(1)] = 0.25
    """gamma_scope: share of the positions that a subject may take."""
    mask_steps: PositiveInt | None = 12
    """T_stop: masks are found in the first T_stop steps; null: in all steps."""
    mask_every: PositiveInt = 1
    """1 is exact; with k the guidance branch runs in every k-th of these steps only, which is faster; 3 works well."""
    mask_cross_downscales: Annotated[list[Downscale], MinLen(1)] = field(default_factory=lambda: [1, 2])
    """Cross-attention layers that make the mask, as downscales of the largest attention grid."""
    mask_self_downscales: list[Downscale] = field(default_factory=lambda: [1])
    """Self-attention layers that refine the mask, as downscales of the largest attention grid; []: none."""
    mask_normalization: MaskNormalization = "max_norm"
    """max_norm, or min_max_per_channel: each layer's map, and their mean, from 0 to 1 (the authors' code has both)."""
    mask_binary: bool = False
    """true: no weights inside the mask (RealCustom Table 2, RealCustom++ Table VI)."""
    visual_scale: NonNegativeFloat = 1.0
    """Strength of the visual attention."""

    @model_validator(mode="after")
    def _mask_steps_fit(self) -> InferenceSettings:
        if self.mask_steps is not None and self.mask_steps > self.steps:
            raise ValueError(
                f"mask_steps is {self.mask_steps}, but there are {self.steps} steps; set mask_steps to at most that, "
                "or to null for all steps"
            )
        return self

    @property
    def effective_mask_steps(self) -> int:
        """`mask_steps`, or all steps where it is None."""
        return self.steps if self.mask_steps is None else self.mask_steps

    def with_steps(self, steps: int) -> InferenceSettings:
        """The same settings with another number of steps, in which `mask_steps` fits."""
        mask_steps = None if self.mask_steps is None else min(self.mask_steps, steps)
        return replace(self, steps=steps, mask_steps=mask_steps)

    def with_values(self, values: Mapping[str, Any]) -> InferenceSettings:
        """The same settings with some values; if `steps` is one of them, as `with_steps`.

        Raises:
            GenerationError: The values do not fit together.
        """
        fitting = self.with_steps(values["steps"]) if "steps" in values else self
        try:
            return replace(fitting, **values)
        except ValidationError as error:
            raise GenerationError(f"{error.errors()[0]['msg'].removeprefix('Value error, ')}.") from error


#: With the weights that RealCustom++'s authors released. [1, 2] is all of SDXL's cross-attention.
RELEASE_SETTINGS = InferenceSettings(
    steps=25,
    sampler="dpm",
    guidance_scale=3.5,
    mask_scope=0.25,
    mask_steps=12,
    mask_cross_downscales=[1, 2],
    mask_self_downscales=[],
    mask_normalization="max_norm",
)
