from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.guidance.masks import (
    attend,
    grid_at,
    layer_regions,
    normalize_by_maximum,
    resize,
    select_top,
    token_indicator,
    top_count,
)
from tests.support.attention_records import printed_loop

LATENT = (6, 8)


def layer(downscale: int, keys: int, heads: int = 2, width: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    positions = math.prod(grid_at(LATENT, downscale))
    query, key = (torch.randn(2, heads, n, width, generator=generator) for n in (positions, keys))
    return query, key


def probabilities(query: Tensor, key: Tensor) -> Tensor:
    """The mean over heads of the softmax, entry by entry: (B, N, n)."""
    batch, heads, positions, width = query.shape
    out = torch.zeros(batch, positions, key.shape[2], dtype=torch.float64)
    for b, h, i in product(range(batch), range(heads), range(positions)):
        scores = [float(query[b, h, i].double() @ one.double()) / width**0.5 for one in key[b, h]]
        total = sum(math.exp(score) for score in scores)
        out[b, i] += torch.tensor([math.exp(score) / total for score in scores]) / heads
    return out


@pytest.mark.parametrize("subjects", [1, 3, 4, 6])
def test_attend_is_the_mean_over_heads_of_softmax_times_vector(subjects: int) -> None:
    query, key = layer(2, 12)
    vectors = torch.rand(2, 12, subjects)
    expected = probabilities(query, key) @ vectors.double()
    torch.testing.assert_close(attend(query, key, vectors).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("positions", "keys", "heads", "width"),
    [(4096, 4096, 1, 40), (256, 77, 8, 160), (4096, 4096, 1, 64), (1024, 77, 20, 64)],
    ids=["SD-1.5 self", "SD-1.5 cross", "SDXL self", "SDXL cross"],
)
def test_attend_at_the_shapes_of_stable_diffusion(positions: int, keys: int, heads: int, width: int) -> None:
    query, key, vectors = (torch.randn(1, heads, n, width) for n in (positions, keys, keys))
    vectors = vectors[:, 0, :, :2].abs()
    naive = ((query @ key.transpose(2, 3) / width**0.5).softmax(-1) @ vectors[:, None]).mean(1)
    torch.testing.assert_close(attend(query, key, vectors), naive, rtol=1e-5, atol=1e-5)


def test_attend_needs_no_full_matrix() -> None:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # an error if these shapes had no such kernel
        attend(*layer(1, 48), torch.rand(2, 48, 2))


def test_the_attention_of_a_uniform_layer_is_uniform() -> None:
    """By hand: equal keys give each of 5 tokens 1/5; two target tokens give 2/5 everywhere, none gives 0."""
    indicator = token_indicator([[[0, 3], [1]], [[2]]], 5)
    assert indicator.transpose(1, 2).tolist() == [
        [[1, 0, 0, 1, 0], [0, 1, 0, 0, 0]],
        [[0, 0, 1, 0, 0], [0, 0, 0, 0, 0]],
    ]
    attended = attend(torch.randn(2, 2, 12, 4), torch.ones(2, 2, 5, 4), indicator)
    expected = torch.tensor([[0.4, 0.2], [0.2, 0.0]])[:, None].expand(2, 12, 2)
    torch.testing.assert_close(attended, expected)


def test_resize_is_bilinear() -> None:
    maps = torch.tensor([[0.0, 5.0], [1.0, 6.0]])[None]  # a row of two positions, two subjects
    assert resize(maps, (1, 2), (1, 4))[0, :, 0].tolist() == [0, 0.25, 0.75, 1]
    assert resize(maps, (1, 2), (1, 4))[0, :, 1].tolist() == [5, 5.25, 5.75, 6]
    assert resize(maps, (1, 2), (1, 2)) is maps


@given(st.data())
def test_algorithm_1(data: st.DataObject) -> None:
    positions, subjects = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    levels = data.draw(st.sampled_from([3, 1000]))  # with 3 there are many ties
    maps = torch.randint(1, levels + 1, (2, positions, subjects), generator=generator) / levels
    counts = []
    for _ in range(2):
        left, own = positions, list[int]()
        for _ in range(subjects):
            own.append(data.draw(st.integers(0, left)))
            left -= own[-1]
        counts.append(own)
    selected = select_top(maps, counts)
    for row in range(2):
        assert torch.equal(selected[row], printed_loop(maps[row], counts[row]))
        assert (selected[row] > 0).sum(0).tolist() == counts[row]
        assert int((selected[row] > 0).sum(1).max()) <= 1


def test_algorithm_1_by_hand() -> None:
    """Both want the second position; the first subject is first in turn, the second one takes its next best."""
    maps = torch.tensor([[[0.2, 0.3], [0.9, 0.8], [0.5, 0.7], [0.1, 0.6]]])
    expected = torch.tensor([[[0.2, 0.0], [0.9, 0.0], [0.0, 0.7], [0.0, 0.0]]])
    assert torch.equal(select_top(maps, [[2, 1]]), expected)
    free = torch.tensor([[True, False, True, True]])
    expected = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [0.5, 0.0], [0.0, 0.6]]])
    assert torch.equal(select_top(maps, [[1, 1]], free), expected)
    with pytest.raises(ValueError, match="4 positions of the mask, but 3 are free"):
        select_top(maps, [[2, 2]], free)


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.02, 1), st.integers(0, 1000))
def test_one_subject_has_its_highest_entries(height: int, width: int, scope: float, seed: int) -> None:
    maps = torch.rand(3, height * width, 1, generator=torch.Generator().manual_seed(seed)) + 0.1
    if math.floor(scope * height * width + 1e-6) == 0:
        with pytest.raises(ValueError, match="keeps 0 of"):
            top_count(scope, height * width)
        return
    count = top_count(scope, height * width)
    kept = select_top(maps, [[count]] * 3)
    for before, after in zip(maps[..., 0], kept[..., 0], strict=True):
        assert sorted(after.tolist(), reverse=True)[:count] == sorted(before.tolist(), reverse=True)[:count]
        assert int((after > 0).sum()) == count


def test_shares_are_exact() -> None:
    assert (top_count(0.25, 16), top_count(0.29, 100), top_count(1, 16)) == (4, 29, 16)


@pytest.mark.parametrize("scope", [0.0, -0.5, 1.1, 0.01])
def test_scopes_out_of_range(scope: float) -> None:
    with pytest.raises(ValueError, match="mask scope"):
        top_count(scope, 16)


def test_equations_13_and_16() -> None:
    maps = torch.tensor([[[0.0, 2.0, 1.0, 0.5], [0.1, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]).transpose(1, 2)
    expected = torch.tensor([[[0.0, 1.0, 0.5, 0.25], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]).transpose(1, 2)
    torch.testing.assert_close(normalize_by_maximum(maps), expected)


def test_regions_are_where_block_means_are_not_zero() -> None:
    mask = torch.zeros(2, 6, 8)
    mask[0, :3, :5], mask[1, 5, 7] = torch.rand(3, 5) + 0.1, 0.5
    regions = layer_regions(mask, LATENT, (1, 2, 4))
    for downscale, (height, width) in ((1, (6, 8)), (2, (3, 4))):
        region = regions[downscale]
        dense = torch.zeros(2, height * width).scatter(1, region.positions, region.weights[..., 0])
        for row, i, j in product(range(2), range(height), range(width)):
            block = mask[row, downscale * i : downscale * (i + 1), downscale * j : downscale * (j + 1)].mean()
            torch.testing.assert_close(dense[row, width * i + j], block)
    assert regions[1].positions.shape == (2, 15)
    assert regions[2].positions.shape == (2, 6)
    assert int((regions[1].weights[1] > 0).sum()) == 1
    assert all(len(set(row.tolist())) == len(row) for region in regions.values() for row in region.positions)
    everywhere = layer_regions(torch.ones(1, 6, 8), LATENT, (1, 2, 4))
    assert [region.weights.sum() for region in everywhere.values()] == [48, 12, 4]
    nowhere = layer_regions(torch.zeros(1, 6, 8), LATENT, (1,))[1]
    assert nowhere.weights.tolist() == [[[0.0]]]


def test_odd_latents_round_up_like_the_unet() -> None:
    assert [grid_at((5, 7), downscale) for downscale in (1, 2, 4)] == [(5, 7), (3, 4), (2, 2)]
