"""The settings of mask-guided inference. Imports nothing heavy: the configuration has a section of this type."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """How the pipeline denoises (RealCustom Sec. 3.3, RealCustom++ Sec. III-D)."""

    steps: int = 25  # denoising steps
    guidance_scale: float = 5.0  # omega of RealCustom++'s Eq. 15, omega_t of RealCustom's Eq. 13
    image_guidance_scale: float = 8.0  # omega_i of RealCustom's Eq. 13; RealCustom++ has none
    gamma_num: float = 0.8  # share of the image tokens that RealCustom's scoring module keeps
    mask_scope: float = 0.25  # gamma_scope: share of the positions that a subject may take
    mask_steps: int = 12  # T_stop: masks are found in the first T_stop steps
    mask_every: int = 1  # 1 is exact; with k the guidance branch runs in every k-th of these steps only; 3 works well
    # Attention layers that make the mask, as downscales of the largest attention grid (model/guidance/guidance_branch).
    mask_cross_downscales: list[int] = field(default_factory=lambda: [1, 2])
    mask_self_downscales: list[int] = field(default_factory=lambda: [1])
    mask_binary: bool = False  # True: no weights inside the mask (RealCustom Table 2, RealCustom++ Table VI)
    visual_scale: float = 1.0  # strength of the visual attention

    def with_steps(self, steps: int) -> InferenceSettings:
        """The same settings with another number of steps, in which `mask_steps` fits."""
        return replace(self, steps=steps, mask_steps=min(self.mask_steps, steps))
