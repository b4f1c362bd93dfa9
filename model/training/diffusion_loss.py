"""The diffusion loss: its target, its weights, and its mean by groups of examples.

Legend of shapes: B batch, h, w latent grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.errors import BackboneError

#: Bands of equal width of the noise schedule, with one curve each.
TIMESTEP_BANDS = 4


def diffusion_target(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """The target of the UNet's prediction: eps (Ho et al. 2020) or v (Salimans & Ho 2022), by the scheduler's config.

    Args:
        scheduler: of diffusers.
        latents: z (B, 4, h, w).
        noise: eps (B, 4, h, w).
        timesteps: (B,).

    Returns:
        (B, 4, h, w).

    Raises:
        BackboneError: the scheduler has another prediction type.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    raise BackboneError(f"the scheduler's prediction_type {kind!r} is neither 'epsilon' nor 'v_prediction'.")


def squared_errors(predicted: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean squared error of each example (B,), of its whole grid or of the positions in its mask.

    Args:
        predicted: (B, 4, h, w).
        target: (B, 4, h, w).
        mask: (B, 1, h, w), 1 where an error counts; in every example somewhere.
    """
    errors = F.mse_loss(predicted, target, reduction="none")
    if mask is None:
        return errors.flatten(1).mean(1)
    return (errors * mask).flatten(1).sum(1) / mask.expand_as(errors).flatten(1).sum(1)


def min_snr_weights(scheduler: Any, timesteps: Tensor, gamma: float) -> Tensor:
    """Min-SNR-gamma loss weighting (Hang et al. 2023, Efficient Diffusion Training via Min-SNR Weighting Strategy).

    With SNR(t) = abar_t / (1 - abar_t): min(SNR, gamma) / SNR if the model predicts eps, min(SNR, gamma) / (SNR + 1) if
    it predicts v. In both cases an error in z_0 has the weight min(SNR, gamma).

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
    """Bands of a schedule of `length` steps, with the timesteps (B,) in each: "t_0_250" -> (B,) bool, ..."""
    edges = [length * band // TIMESTEP_BANDS for band in range(TIMESTEP_BANDS + 1)]
    return {f"t_{first}_{end}": (timesteps >= first) & (timesteps < end) for first, end in pairwise(edges)}


def group_means(losses: Tensor, groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean loss of every group that is not empty: losses (B,); for each group its members (B,) bool."""
    members = torch.stack(list(groups.values())).to(losses.dtype)  # (G, B)
    sizes = members.sum(1)
    means = (members * losses).sum(1) / sizes
    # `tolist` synchronizes with the device once for all groups.
    return {name: mean for name, mean, size in zip(groups, means, sizes.tolist(), strict=True) if size}
