"""Training tensors from the scene pool. Draws are pure functions of (seed, step), sharded by rank."""

import functools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.microworld.pool import ScenePool


@functools.lru_cache(maxsize=4)
def open_pool(folder: Path) -> ScenePool:
    """Open a pool once per process, so that tasks stay picklable."""
    return ScenePool.open(folder)


def draw_indices(seed: int, step: int, rank: int, world: int, count: int, batch: int) -> NDArray[np.int64]:
    """Draw this rank's share of a step's `batch` samples; the union over ranks does not depend on their number."""
    if batch % world:
        raise ValueError(f"batch {batch} does not divide among {world} workers")
    local = batch // world
    drawn = np.random.default_rng([seed, step]).integers(count, size=batch)
    return drawn[rank * local : (rank + 1) * local]


def seeded_generator(seed: int, step: int, rank: int) -> torch.Generator:
    """Generator of the noise of one rank's share of a step."""
    return torch.Generator().manual_seed(int(np.random.default_rng([seed, step, rank]).integers(2**63)))


def images_at(pool: ScenePool, index: NDArray[np.int64]) -> Tensor:
    """Pictures as (B, 3, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(pool.image[index]).permute(0, 3, 1, 2)
    return (pixels.float() / 127.5 - 1).contiguous()


def masks_at(pool: ScenePool, index: NDArray[np.int64]) -> Tensor:
    """Subject alphas as (B, 1, H, W) in [0, 1]."""
    return torch.from_numpy(pool.mask[index])[:, None].float() / 255


def crop_around(picture: Tensor, weight: Tensor, size: int, spread: float = 2.3) -> Tensor:
    """Crop squares (B, C, size, size) centred on soft masks (B, 1, h, w), `spread` standard deviations to each side."""
    height, width = weight.shape[-2:]
    share = weight.flatten(1).clamp(min=1e-4).square()
    share = share / share.sum(1, keepdim=True)
    x = ((torch.arange(width, device=weight.device) + 0.5) / width * 2 - 1).repeat(height)
    y = ((torch.arange(height, device=weight.device) + 0.5) / height * 2 - 1).repeat_interleave(width)
    centre_x, centre_y = share @ x, share @ y
    variance_x = (share * (x - centre_x[:, None]).square()).sum(1)
    variance_y = (share * (y - centre_y[:, None]).square()).sum(1)
    reach = torch.maximum(variance_x, variance_y).sqrt() * spread
    none = torch.zeros_like(reach)
    window = torch.stack([reach, none, centre_x, none, reach, centre_y], 1).view(-1, 2, 3)
    grid = F.affine_grid(window, [len(picture), 1, size, size], align_corners=False)
    return F.grid_sample(picture, grid, align_corners=False, padding_mode="border")
