"""The guidance masks of the subjects (RealCustom++ Secs. III-D and III-E, Eqs. 12-13, 16), as pure functions.

Softmax(Q K^T) m is computed as attention with the value m: no N x N matrix is materialized.

Legend of shapes: B batch, S subjects of a picture, H heads, d head width, h x w the layer's grid with N = h * w, n
keys, n_t text tokens, G x G' the largest attention grid.
"""

import math
from collections.abc import Collection, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from model.adapters.visual_attention import Region
from model.errors import GenerationError

Grid = tuple[int, int]
#: How a mask is resized to a layer's grid; bilinear, without antialiasing, as in the code of RealCustom++'s authors.
Interpolation = Literal["area", "bilinear"]


def grid_at(latent: Grid, downscale: int) -> Grid:
    """Grid of a layer; each halving of the UNet rounds up."""
    return math.ceil(latent[0] / downscale), math.ceil(latent[1] / downscale)


def token_indicator(positions: Sequence[Sequence[Sequence[int]]], tokens: int) -> Tensor:
    """Token positions of each subject's word, for each picture -> (B, n_t, S): 1 at these positions, 0 elsewhere.

    Pictures with fewer subjects are padded with zeros.
    """
    indicator = torch.zeros(len(positions), tokens, max(len(subjects) for subjects in positions))
    for row, subjects in zip(indicator, positions, strict=True):
        for subject, own in enumerate(subjects):
            row[list(own), subject] = 1
    return indicator


def attend(query: Tensor, key: Tensor, vectors: Tensor) -> Tensor:
    """Mean over heads of Softmax(Q K^T / sqrt(d)) m, in linear memory, for S vectors m at once.

    Args:
        query: (B, H, N, d)
        key: (B, H, n, d)
        vectors: (B, n, S)

    Returns:
        (B, N, S) in fp32
    """
    width = query.shape[-1]
    parts = []
    for part in vectors.to(query.dtype).split(width, dim=-1):
        # Flash kernels need a value as wide as the head; other widths fall back to the full matrix.
        value = F.pad(part, (0, width - part.shape[-1]))[:, None].expand(-1, query.shape[1], -1, -1)
        attended = F.scaled_dot_product_attention(query, key, value)
        parts.append(attended[..., : part.shape[-1]].float().mean(1))
    return torch.cat(parts, dim=-1)


def resize(maps: Tensor, grid: Grid, to: Grid) -> Tensor:
    """Resize maps (B, N, S) to a finer grid (bilinear) or to a coarser one (by area)."""
    if grid == to:
        return maps
    spread = maps.transpose(1, 2).unflatten(2, grid)
    finer = to[0] > grid[0] or to[1] > grid[1]
    resized = F.interpolate(spread, to, mode="bilinear") if finer else F.interpolate(spread, to, mode="area")
    return resized.flatten(2).transpose(1, 2)


def top_count(scope: float, positions: int) -> int:
    """The number of positions that the subject may take: floor(scope * positions).

    Raises:
        GenerationError: the scope lies outside (0, 1] or keeps no position.
    """
    count = math.floor(scope * positions + 1e-6)  # 0.29 * 100 is 28.999999999999996
    if not 0 < scope <= 1 or count < 1:
        raise GenerationError(
            f"mask scope {scope} keeps {count} of {positions} positions; it must keep at least 1 and at most all."
        )
    return count


def select_top(maps: Tensor, counts: Sequence[Sequence[int]], free: Tensor | None = None) -> Tensor:
    """M_bar: Multi-Subject Top-K selection (RealCustom++ Algorithm 1); with one subject, its highest entries.

    The subjects of a picture take turns. In its turn, a subject takes its best position that is still free, until it
    has its number of positions. Instead of searching the whole map in each turn, as printed, each map is sorted once.

    Args:
        maps: M (B, N, S).
        counts: for each picture and each of its subjects, the number of positions that it takes.
        free: (B, N), the positions that may be taken; None: all.

    Returns:
        (B, N, S), the selected entries, zeros elsewhere.

    Raises:
        GenerationError: the subjects of a picture take more positions than are free.
    """
    if maps.shape[2] == 1 and free is None:
        return _select_of_one(maps, [count for (count,) in counts])
    owners = torch.full(maps.shape[:2], -1)
    taken = torch.zeros(maps.shape[:2], dtype=torch.bool) if free is None else ~free.cpu()
    orders = maps.transpose(1, 2).cpu().argsort(dim=2, descending=True, stable=True).tolist()
    for row, order in enumerate(orders):
        owners[row] = torch.tensor(_take_turns(order, list(counts[row]), taken[row].tolist()))
    chosen = owners[..., None] == torch.arange(maps.shape[2])
    return maps.where(chosen.to(maps.device), 0)


def _select_of_one(maps: Tensor, counts: Sequence[int]) -> Tensor:
    """`select_top` for one subject in each picture, (B, N, 1), without leaving the device."""
    if max(counts) > maps.shape[1]:
        raise _too_few(max(counts), maps.shape[1])
    order = maps.argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(maps.shape[1], device=maps.device)[:, None]
    best = ranks < torch.tensor(counts, device=maps.device)[:, None, None]
    return maps.where(torch.zeros_like(best).scatter(1, order, best), 0)


def _take_turns(orders: Sequence[Sequence[int]], counts: list[int], taken: list[bool]) -> list[int]:
    """Each subject's positions from best to worst -> the owner of each position; -1: none."""
    if sum(counts) > taken.count(False):
        raise _too_few(sum(counts), taken.count(False))
    owners, best = [-1] * len(taken), [iter(order) for order in orders]
    while any(counts):
        for subject, count in enumerate(counts):
            if count:
                position = next(position for position in best[subject] if not taken[position])
                owners[position], taken[position] = subject, True
                counts[subject] -= 1
    return owners


def _too_few(wanted: int, free: int) -> GenerationError:
    return GenerationError(
        f"the scopes of a picture's subjects add up to {wanted} positions of the mask, but {free} are free."
    )


def normalize_by_range(maps: Tensor) -> Tensor:
    """Each map from its minimum to its maximum, with the authors' epsilon. (B, N, S) -> (B, N, S) in [0, 1]."""
    least, most = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    return (maps - least) / (most - least + 1e-6)


def normalize_by_maximum(maps: Tensor) -> Tensor:
    """M_hat = M_bar / max(M_bar) of each subject (RealCustom++ Eqs. 13, 16). (B, N, S) -> (B, N, S) in [0, 1]."""
    return maps / maps.amax(1, keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


def layer_regions(
    masks: Tensor, latent: Grid, downscales: Collection[int], interpolation: Interpolation = "area"
) -> dict[int, Region]:
    """A mask resized to each block's grid (RealCustom++ Eq. 14): (B, G, G') -> downscale -> its region."""
    weights = [_at_layer(masks, grid_at(latent, downscale), interpolation) for downscale in downscales]
    fullest = torch.stack([(of_layer > 0).sum(1).max() for of_layer in weights]).tolist()  # one synchronization
    return {
        downscale: _region(of_layer, max(1, positions))
        for downscale, of_layer, positions in zip(downscales, weights, fullest, strict=True)
    }


def _at_layer(masks: Tensor, grid: Grid, interpolation: Interpolation) -> Tensor:
    return F.interpolate(masks[:, None], grid, mode=interpolation).flatten(1)


def _region(weights: Tensor, positions: int) -> Region:
    """Weights (B, N) -> the positions where they are not zero, padded to the number of the fullest row."""
    top = weights.topk(positions, dim=1)
    return Region(top.indices, top.values[..., None])
