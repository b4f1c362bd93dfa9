"""The settings of mask-guided inference. No heavy import belongs here: the pipeline's configuration holds them."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """Mask-guided inference (RealCustom Sec. 3.3, RealCustom++ Sec. III-D)."""

    steps: int = 25
    guidance_scale: float = 5.0
    image_guidance_scale: float = 8.0  # RealCustom's omega_i; RealCustom++ has none
    gamma_num: float = 0.8  # the share of the image tokens that RealCustom keeps
    mask_scope: float = 0.25  # gamma_scope: the share of positions that the subject may take
    mask_steps: int = 12  # T_stop: the guidance branch runs in the first so many steps
    mask_every: int = 1  # 1 is exact; k: it runs in every k-th of them, faster; 3 is a good choice
    # Attention layers that make the mask, as downscales of the largest attention grid; see model/guidance_branch.
    mask_cross_downscales: list[int] = field(default_factory=lambda: [1, 2])
    mask_self_downscales: list[int] = field(default_factory=lambda: [1])
    mask_binary: bool = False  # True: no weights inside the mask (RealCustom Table 2, RealCustom++ Table VI)
    visual_scale: float = 1.0
