"""The diffusion loss: what the UNet is to predict, how much an error counts, whose errors the mean is made of.

Legend of shapes: B batch, h, w latent grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

#: The schedule is cut into so many bands of equal width, a curve each.
TIMESTEP_BANDS = 4


def diffusion_target(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the UNet is to predict: eps (Ho et al. 2020) or v (Salimans & Ho 2022), as the scheduler says.

    Args:
        scheduler: of diffusers.
        latents: z (B, 4, h, w).
        noise: eps (B, 4, h, w).
        timesteps: (B,).

    Returns:
        (B, 4, h, w).

    Raises:
        ValueError: the scheduler's prediction type is neither.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    raise ValueError(f"the scheduler's prediction type {kind!r} is neither 'epsilon' nor 'v_prediction'.")


def min_snr_weights(scheduler: Any, timesteps: Tensor, gamma: float) -> Tensor:
    """Min-SNR-gamma loss weighting (Hang et al. 2023, Efficient Diffusion Training via Min-SNR Weighting Strategy).

    With SNR(t) = abar_t / (1 - abar_t): min(SNR, gamma) / SNR where eps is predicted, min(SNR, gamma) / (SNR + 1) where
    v is. Both make the weight of an error in z_0 min(SNR, gamma).

    Args:
        scheduler: of diffusers.
        timesteps: (B,).
        gamma: above 0; 5 in the paper.

    Returns:
        (B,).
    """
    alpha_bar = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = alpha_bar / (1 - alpha_bar)
    if scheduler.config.prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1)  # defined at SNR = 0 too
    return snr.clamp(max=gamma) / (snr + 1)


def timestep_bands(timesteps: Tensor, length: int) -> dict[str, Tensor]:
    """Which of the timesteps (B,) lie in each band of a schedule of `length` steps: "t_0_250" -> (B,) bool, ..."""
    edges = [length * band // TIMESTEP_BANDS for band in range(TIMESTEP_BANDS + 1)]
    return {f"t_{first}_{end}": (timesteps >= first) & (timesteps < end) for first, end in pairwise(edges)}


def group_means(losses: Tensor, groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean loss of every group that has examples: losses (B,), for each group (B,) bool whether one is in it."""
    members = torch.stack(list(groups.values())).to(losses.dtype)  # (G, B)
    sizes = members.sum(1)
    means = (members * losses).sum(1) / sizes
    # One look at the device tells all groups apart.
    return {name: mean for name, mean, size in zip(groups, means, sizes.tolist(), strict=True) if size}
