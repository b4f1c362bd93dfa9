from __future__ import annotations

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.mask_guidance import (
    attend,
    cross_map,
    grid_at,
    guidance_mask,
    layer_masks,
    normalise_by_maximum,
    select_top,
    self_refined,
    token_indicator,
)
from model.visual_attention import AttentionKind, AttentionRecord

LATENT = (6, 8)


def record(kind: AttentionKind, downscale: int, keys: int, heads: int = 2, seed: int = 0) -> AttentionRecord:
    generator = torch.Generator().manual_seed(seed)
    positions = math.prod(grid_at(LATENT, downscale))
    query, key = (torch.randn(2, heads, n, 4, generator=generator) for n in (positions, keys))
    return AttentionRecord(kind, downscale, query, key)


def probabilities(record: AttentionRecord) -> Tensor:
    """The mean over heads of the softmax, entry by entry: (B, N, n)."""
    batch, heads, positions, width = record.query.shape
    out = torch.zeros(batch, positions, record.key.shape[2], dtype=torch.float64)
    for b, h, i in product(range(batch), range(heads), range(positions)):
        scores = [float(record.query[b, h, i].double() @ key.double()) / width**0.5 for key in record.key[b, h]]
        total = sum(math.exp(score) for score in scores)
        out[b, i] += torch.tensor([math.exp(score) / total for score in scores]) / heads
    return out


POSITIONS = [[1, 2], [4]]


def naive_cross(records: list[AttentionRecord], grid: tuple[int, int]) -> Tensor:
    total = torch.zeros(2, *grid, dtype=torch.float64)
    for layer in records:
        shares = probabilities(layer)
        summed = torch.stack([shares[row][:, places].sum(1) for row, places in enumerate(POSITIONS)])
        maps = summed.view(2, 1, *grid_at(LATENT, layer.downscale))
        total += F.interpolate(maps, grid, mode="bilinear", align_corners=False)[:, 0] / len(records)
    return total


def test_attend_is_the_mean_over_heads_of_softmax_times_vector() -> None:
    layer, vector = record("self", 2, 12), torch.rand(2, 12)
    expected = torch.einsum("bij,bj->bi", probabilities(layer), vector.double())
    torch.testing.assert_close(attend(layer.query, layer.key, vector).double(), expected, rtol=1e-5, atol=1e-5)


def test_attend_needs_no_full_matrix() -> None:
    layer = record("self", 1, 48)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # an error if these shapes had no such kernel
        attend(layer.query, layer.key, torch.rand(2, 48))


def test_equation_12() -> None:
    indicator = token_indicator(POSITIONS, 6)
    assert indicator.tolist() == [[0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]]
    crosses = [record("cross", 2, 6, seed=1), record("cross", 1, 6, heads=3, seed=2), record("cross", 2, 6, seed=3)]
    selves = [record("self", 1, 48, seed=4), record("self", 1, 48, heads=1, seed=5)]
    cross = cross_map(crosses, indicator, LATENT, LATENT)
    expected = naive_cross(crosses, LATENT)
    torch.testing.assert_close(cross.double(), expected, rtol=1e-5, atol=1e-5)
    matrix = (probabilities(selves[0]) + probabilities(selves[1])) / 2
    refined = torch.einsum("bij,bj->bi", matrix, expected.flatten(1)).view(2, *LATENT)
    torch.testing.assert_close(self_refined(selves, cross).double(), refined, rtol=1e-5, atol=1e-5)

    mask = guidance_mask([*crosses, *selves], indicator, LATENT, 1, 0.25)
    for row in range(2):
        values = sorted(refined[row].flatten().tolist(), reverse=True)
        kept = [value if value >= values[11] else 0.0 for value in refined[row].flatten().tolist()]
        naive = torch.tensor(kept).view(LATENT) / values[0]
        torch.testing.assert_close(mask[row], naive, rtol=1e-5, atol=1e-5)


def test_the_attention_of_a_uniform_layer_is_uniform() -> None:
    """By hand: equal keys give each of 5 tokens 1/5; two target tokens give 2/5 everywhere."""
    layer = AttentionRecord("cross", 2, torch.randn(1, 2, 12, 4), torch.ones(1, 2, 5, 4))
    cross = cross_map([layer], token_indicator([[0, 3]], 5), LATENT, (3, 4))
    torch.testing.assert_close(cross, torch.full((1, 3, 4), 0.4))


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.02, 1), st.integers(0, 1000))
def test_top_k_keeps_exactly_the_share(height: int, width: int, scope: float, seed: int) -> None:
    maps = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) + 0.1
    count = math.floor(scope * height * width + 1e-6)
    if count == 0:
        with pytest.raises(ValueError, match="keeps 0 of"):
            select_top(maps, scope)
        return
    kept = select_top(maps, scope)
    assert (kept > 0).flatten(1).sum(1).tolist() == [count] * 3
    for before, after in zip(maps.flatten(1), kept.flatten(1), strict=True):
        assert torch.equal(after[after > 0], before[after > 0])
        assert after[after > 0].min() >= before[after == 0].max() if count < height * width else True


def test_ties_do_not_change_the_count() -> None:
    assert int((select_top(torch.ones(1, 4, 4), 0.25) > 0).sum()) == 4
    assert int((select_top(torch.ones(1, 10, 10), 0.29) > 0).sum()) == 29


@pytest.mark.parametrize("scope", [0.0, -0.5, 1.1, 0.01])
def test_useless_scopes(scope: float) -> None:
    with pytest.raises(ValueError, match="mask scope"):
        select_top(torch.rand(1, 4, 4), scope)


def test_equation_13() -> None:
    maps = torch.tensor([[[0.0, 2.0], [1.0, 0.5]], [[0.1, 0.0], [0.0, 0.0]]])
    expected = torch.tensor([[[0.0, 1.0], [0.5, 0.25]], [[1.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(normalise_by_maximum(maps), expected)


def test_masks_for_each_grid_are_block_means() -> None:
    mask = torch.rand(2, 6, 8)
    masks = layer_masks(mask, LATENT, (1, 2))
    assert torch.equal(masks[1][..., 0], mask.flatten(1))
    for row, i, j in product(range(2), range(3), range(4)):
        block = mask[row, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean()
        torch.testing.assert_close(masks[2][row, 4 * i + j, 0], block)
    ones = layer_masks(torch.ones(1, 6, 8), LATENT, (1, 2, 4))
    assert all(torch.equal(sized, torch.ones_like(sized)) for sized in ones.values())
    assert ones[4].shape == (1, 4, 1)


def test_odd_latents_round_up_like_the_unet() -> None:
    assert [grid_at((5, 7), downscale) for downscale in (1, 2, 4)] == [(5, 7), (3, 4), (2, 2)]
