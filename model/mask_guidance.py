"""The guidance branch's mask (RealCustom++ Sec. III-D, Eqs. 12-13), from recorded queries and keys.

Which layers: cross-attention of low resolution says *what* (the target word), self-attention of the highest resolution
says *where exactly*. "Low" depends on the backbone and is configured as the downscales relative to the largest
attention grid: SD-1.5 [4] (16 x 16 of 64 x 64), SDXL [2] (32 x 32 of 64 x 64), micro [1] (16 x 16 is all it has;
its coarser maps localise worse).

No N x N matrix and no full probability tensor is materialised: Softmax(Q K^T) m is attention with the value m.

Legend of shapes: B batch, H heads, d head width, h x w the layer's grid with N = h * w, n_t text tokens, G x G' the
largest attention grid.
"""

import math
from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.visual_attention import AttentionRecord

Grid = tuple[int, int]


def grid_at(latent: Grid, downscale: int) -> Grid:
    """Grid of a layer; each halving of the UNet rounds up."""
    return math.ceil(latent[0] / downscale), math.ceil(latent[1] / downscale)


def token_indicator(positions: Sequence[Sequence[int]], tokens: int) -> Tensor:
    """Positions of the target word's tokens, one list a picture -> (B, tokens), 1 at the positions, 0 elsewhere."""
    indicator = torch.zeros(len(positions), tokens)
    for row, places in zip(indicator, positions, strict=True):
        row[list(places)] = 1
    return indicator


def attend(query: Tensor, key: Tensor, vector: Tensor) -> Tensor:
    """Mean over heads of Softmax(Q K^T / sqrt(d)) m, in linear memory.

    Args:
        query: (B, H, N, d)
        key: (B, H, n, d)
        vector: m (B, n)

    Returns:
        (B, N) in fp32
    """
    value = vector.to(query.dtype)[:, None, :, None].expand(-1, query.shape[1], -1, -1)
    # Flash kernels want the value as wide as the head; a width of 1 would fall back to the full matrix.
    value = F.pad(value, (0, query.shape[-1] - 1))
    return F.scaled_dot_product_attention(query, key, value)[..., 0].float().mean(1)


def cross_map(records: Sequence[AttentionRecord], indicator: Tensor, latent: Grid, grid: Grid) -> Tensor:
    """M_cross: where the target word is looked at, mean over heads and layers, its tokens summed.

    Args:
        records: cross-attention layers, of any grids
        indicator: (B, n_t), 1 at the target word's tokens
        latent: size of the latent
        grid: G, G'; every layer's map is resized to it (bilinear)

    Returns:
        (B, G, G') in fp32
    """
    maps = [resize(_as_grid(record, indicator, latent), grid) for record in records]
    return torch.stack(maps).mean(0)


def _as_grid(record: AttentionRecord, vector: Tensor, latent: Grid) -> Tensor:
    return attend(record.query, record.key, vector).view(-1, *grid_at(latent, record.downscale))


def self_refined(records: Sequence[AttentionRecord], cross: Tensor) -> Tensor:
    """M = M_self M_cross (RealCustom++ Eq. 12), M_self the mean over heads and layers of the self-attention.

    Args:
        records: self-attention layers of the largest grid
        cross: M_cross (B, G, G')

    Returns:
        (B, G, G') in fp32
    """
    vector = cross.flatten(1)
    products = [attend(record.query, record.key, vector) for record in records]
    return torch.stack(products).mean(0).view_as(cross)


def resize(maps: Tensor, grid: Grid) -> Tensor:
    """(B, h, w) -> (B, *grid), bilinear."""
    if maps.shape[1:] == grid:
        return maps
    return F.interpolate(maps[:, None], grid, mode="bilinear", align_corners=False)[:, 0]


def top_count(scope: float, positions: int) -> int:
    """How many of so many positions the subject may take: floor(scope * positions).

    Raises:
        ValueError: the scope lies outside (0, 1] or keeps no position at all.
    """
    count = math.floor(scope * positions + 1e-6)  # 0.29 * 100 is 28.999999999999996
    if not 0 < scope <= 1 or count < 1:
        raise ValueError(
            f"mask scope {scope} keeps {count} of {positions} positions; it must keep from 1 to all of them."
        )
    return count


def select_top(maps: Tensor, scope: float) -> Tensor:
    """M_bar: each map's highest entries, as many as `top_count` says, and zeros. (B, G, G') -> (B, G, G')."""
    flat = maps.flatten(1)
    top = flat.topk(top_count(scope, flat.shape[1]), dim=1)
    return torch.zeros_like(flat).scatter(1, top.indices, top.values).view_as(maps)


def normalise_by_maximum(maps: Tensor) -> Tensor:
    """M_hat = M_bar / max(M_bar) (RealCustom++ Eq. 13). (B, G, G') -> (B, G, G') in [0, 1]."""
    return maps / maps.amax((1, 2), keepdim=True)


def guidance_mask(
    records: Sequence[AttentionRecord], indicator: Tensor, latent: Grid, downscale: int, scope: float
) -> Tensor:
    """M_hat from one call of the guidance branch (RealCustom++ Eqs. 12-13).

    Args:
        records: the cross- and self-attention layers that take part
        indicator: (B, n_t), 1 at the target word's tokens
        latent: size of the latent
        downscale: of the largest attention grid, to which the maps are resized
        scope: gamma_scope

    Returns:
        (B, G, G') in [0, 1]
    """
    cross = [record for record in records if record.kind == "cross"]
    selves = [record for record in records if record.kind == "self"]
    refined = self_refined(selves, cross_map(cross, indicator, latent, grid_at(latent, downscale)))
    return normalise_by_maximum(select_top(refined, scope))


def layer_masks(mask: Tensor, latent: Grid, downscales: Collection[int]) -> dict[int, Tensor]:
    """M_hat resized to each block's grid by area (RealCustom++ Eq. 14): (B, G, G') -> downscale -> (B, N, 1)."""
    sized = {to: F.interpolate(mask[:, None], grid_at(latent, to), mode="area") for to in downscales}
    return {to: resized.flatten(2).transpose(1, 2) for to, resized in sized.items()}
