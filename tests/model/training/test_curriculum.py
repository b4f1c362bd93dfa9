"""Eqs. 10-11 of RealCustom++ against values worked out by hand, and the draws against the equations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.training.curriculum import Recipe, draw_step, max_crop_ratio, multiview_probability

R_MAX = math.sqrt(10)


@pytest.mark.parametrize(
    ("step", "total", "expected"), [(0, 500, 0.0), (125, 500, 0.25), (499, 500, 0.998), (0, 1, 0.0)]
)
def test_eq_10_by_hand(step: int, total: int, expected: float) -> None:
    assert multiview_probability(step, total) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("step", "total", "r_min", "r_max", "expected"),
    [(0, 100, 1.0, R_MAX, 1.0), (50, 100, 1.0, 3.0, 2.0), (25, 100, 1.0, R_MAX, 1.540569), (75, 100, 2.0, 4.0, 3.5)],
)
def test_eq_11_by_hand(step: int, total: int, r_min: float, r_max: float, expected: float) -> None:
    assert max_crop_ratio(step, total, r_min, r_max) == pytest.approx(expected, abs=1e-6)


PLUS = Recipe(steps=100, batch_size=16, r_min=1.0, r_max=R_MAX)

#: The rows of Table X: what the share of view pairs and the largest crop ratio are at progress p.
TABLE_X: dict[str, tuple[Recipe, Callable[[float], float], Callable[[float], float]]] = {
    "No. 1": (dataclasses.replace(PLUS, multiview=0.0, r_max=1.0), lambda p: 0.0, lambda p: 1.0),
    "No. 2": (dataclasses.replace(PLUS, multiview=1.0, r_max=1.0), lambda p: 1.0, lambda p: 1.0),
    "No. 3": (dataclasses.replace(PLUS, multiview=0.5, r_max=1.0), lambda p: 0.5, lambda p: 1.0),
    "No. 4": (dataclasses.replace(PLUS, r_max=1.0), lambda p: p, lambda p: 1.0),
    "No. 5": (dataclasses.replace(PLUS, crops="random"), lambda p: p, lambda p: R_MAX),
    "No. 6": (PLUS, lambda p: p, lambda p: 1 + (R_MAX - 1) * p),
}


@given(total=st.integers(1, 1000), data=st.data())
def test_draws_follow_the_equations(total: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, total - 1))
    draws = draw_step(dataclasses.replace(PLUS, steps=total), step, seed=3)
    assert draws.source.shape == draws.choice.shape == draws.crop_ratio.shape == (16,)
    assert draws.crop_position.shape == (16, 4)
    assert np.all((draws.crop_ratio >= 1) & (draws.crop_ratio <= 1 + (R_MAX - 1) * step / total))
    assert np.all((draws.crop_position >= 0) & (draws.crop_position < 1))
    assert np.all((draws.choice >= 0) & (draws.choice < 1))
    assert np.all((draws.source >= 0) & (draws.source < 1))
    assert 0 <= draws.bucket < 1
    if step == 0:
        assert np.all(draws.crop_ratio == 1)


@pytest.mark.parametrize("row", TABLE_X)
@pytest.mark.parametrize("step", [0, 30, 99])
def test_the_recipes_of_table_x(row: str, step: int) -> None:
    recipe, share, largest = TABLE_X[row]
    count = 40_000
    draws = draw_step(dataclasses.replace(recipe, batch_size=count), step, seed=0)
    progress = step / 100
    # Four standard deviations of a binomial share.
    spread = 4 * math.sqrt(share(progress) * (1 - share(progress)) / count)
    assert (draws.source < recipe.multiview_share(step)).mean() == pytest.approx(share(progress), abs=spread + 1e-12)
    # r ~ U(1, largest): the distance of the empirical distribution from the uniform one (Kolmogorov-Smirnov, 0.01 %).
    width = largest(progress) - 1
    if width == 0:
        assert np.all(draws.crop_ratio == 1)
        return
    position = np.sort((draws.crop_ratio - 1) / width)
    assert 0 <= position[0] <= position[-1] <= 1
    assert np.abs(position - (np.arange(count) + 0.5) / count).max() < 2.23 / math.sqrt(count)


def test_crops_are_independent() -> None:
    draws = draw_step(dataclasses.replace(PLUS, batch_size=40_000), 60, seed=0)
    together = np.stack([*draws.crop_position.T, draws.crop_ratio, draws.choice, draws.source])
    assert abs(np.corrcoef(together) - np.eye(7)).max() < 0.02


def test_a_step_depends_on_nothing_but_its_number_and_the_seed() -> None:
    first, again, other = (draw_step(PLUS, 7, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.choice, again.choice)
    assert not np.array_equal(first.choice, other.choice)


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="step 5 is not one of 5 steps"):
        multiview_probability(5, 5)
    with pytest.raises(ValueError, match=r"1 <= r_min <= r_max"):
        max_crop_ratio(0, 5, 2.0, 1.0)
