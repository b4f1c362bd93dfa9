"""Pictures that are made smaller or larger: sizes, places, words, and where the loss counts."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.concepts.resizing import Resized, draw_resized, loss_mask, place
from model.concepts.training_prompts import LARGE_WORDS, SMALL_WORDS
from model.seeding import generator_of

#: R, latent scale.
SQUARES = [(512, 8), (1024, 8), (64, 4), (32, 2)]


@pytest.mark.parametrize(("square", "scale"), SQUARES)
def test_sizes_and_words(square: int, scale: int) -> None:
    """Two thirds become smaller, down to a third of the side; the others larger by 1.2 to 1.4."""
    drawn = [draw_resized(square, scale, generator_of(seed)) for seed in range(3000)]
    smaller = [one for one in drawn if one.side <= square]
    assert len(smaller) / len(drawn) == pytest.approx(0.66, abs=0.03)
    sides = [one.side for one in smaller]
    assert (min(sides), max(sides)) == pytest.approx((square // 3, square), abs=square / 100)
    larger = [one.side for one in drawn if one.side > square]
    assert int(1.2 * square) <= min(larger) <= max(larger) <= int(1.4 * square)
    for one in drawn:
        listed = LARGE_WORDS if one.side > square else SMALL_WORDS if one.side < 0.6 * square else ("",)
        assert one.words in listed
    counts = Counter(one.words for one in drawn)
    for words in (SMALL_WORDS, LARGE_WORDS):
        assert counts[words[0]] == pytest.approx(counts[words[1]], rel=0.2)


@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1, 2, 4, 8]), grid=st.integers(1, 40))
def test_a_picture_covers_its_mask(seed: int, scale: int, grid: int) -> None:
    """The mask is not empty, and a margin of it is covered too unless the picture fills the square."""
    square = scale * grid
    resized = draw_resized(square, scale, generator_of(seed))
    assert resized == draw_resized(square, scale, generator_of(seed))
    picture = torch.ones(3, resized.side, resized.side)
    seen = place(picture, resized, square)
    mask = loss_mask(resized, square, scale)
    assert seen.shape == (3, square, square)
    assert mask.shape == (1, grid, grid)
    assert mask.any()
    assert set(seen.unique().tolist()) <= {0.5, 1.0}
    if resized.side >= square:
        assert bool(mask.all())
        assert bool((seen == 1).all())
        return
    assert seen.eq(1).sum() == 3 * resized.side**2
    covered = torch.nn.functional.avg_pool2d(seen.eq(1).float()[:1], scale)
    wide = torch.nn.functional.max_pool2d(mask, 3, stride=1, padding=1)
    assert bool((covered[mask == 1] == 1).all())
    assert bool((covered[wide == 1] > 0).all())


#: R, latent scale, side, top, left -> rows and columns with loss, by the authors' code.
MASKS = {
    "on the latent grid": (64, 4, 32, 16, 8, range(5, 11), range(3, 9)),
    "beside it": (64, 4, 21, 3, 41, range(1, 5), range(11, 14)),
    "upper left": (64, 4, 40, 0, 0, range(1, 9), range(1, 9)),
    "lower right": (64, 4, 40, 24, 24, range(7, 15), range(7, 15)),
    "almost whole": (64, 4, 63, 1, 0, range(1, 15), range(1, 14)),
    "whole": (64, 4, 64, 0, 0, range(16), range(16)),
    "larger": (64, 4, 80, -16, -3, range(16), range(16)),
    "of Stable Diffusion": (512, 8, 170, 171, 342, range(22, 41), range(43, 63)),
}


@pytest.mark.parametrize(("square", "scale", "side", "top", "left", "rows", "columns"), MASKS.values(), ids=MASKS)
def test_where_the_loss_counts(
    square: int, scale: int, side: int, top: int, left: int, rows: range, columns: range
) -> None:
    mask = loss_mask(Resized(side, top, left, ""), square, scale)[0]
    expected = [[float(y in rows and x in columns) for x in range(square // scale)] for y in range(square // scale)]
    assert mask.tolist() == expected


def test_places() -> None:
    small = place(torch.rand(3, 2, 2), Resized(2, 1, 0, ""), 4)
    assert (small[0] != 0.5).tolist() == [
        [False] * 4,
        [True, True, False, False],
        [True, True, False, False],
        [False] * 4,
    ]
    large = torch.arange(25.0).reshape(1, 5, 5).expand(3, 5, 5)
    assert torch.equal(place(large, Resized(5, -1, 0, ""), 4), large[:, 1:5, 0:4])
    assert torch.equal(place(large, Resized(5, 0, -1, ""), 4), large[:, 0:4, 1:5])
