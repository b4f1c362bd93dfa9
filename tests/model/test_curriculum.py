"""Eqs. 10-11 of RealCustom++ against values worked out by hand, and the draws against the equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.curriculum import draw_step, max_crop_ratio, multiview_probability

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


@given(total=st.integers(1, 1000), data=st.data())
def test_draws_keep_to_the_equations(total: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, total - 1))
    draws = draw_step(step, total, 16, 1.0, R_MAX, seed=3)
    assert draws.is_multiview.shape == draws.choice.shape == draws.crop_ratio.shape == (16,)
    assert draws.crop_place.shape == (16, 4)
    assert np.all((draws.crop_ratio >= 1) & (draws.crop_ratio <= 1 + (R_MAX - 1) * step / total))
    assert np.all((draws.crop_place >= 0) & (draws.crop_place < 1))
    assert np.all((draws.choice >= 0) & (draws.choice < 1))
    if step == 0:
        assert not draws.is_multiview.any()
        assert np.all(draws.crop_ratio == 1)


def test_means_over_many_draws() -> None:
    draws = draw_step(60, 100, 40_000, 1.0, 3.0, seed=0)
    assert draws.is_multiview.mean() == pytest.approx(0.6, abs=0.01)
    assert draws.crop_ratio.mean() == pytest.approx(1.6, abs=0.01)  # the middle of U(1, 2.2)
    assert abs(np.corrcoef(draws.crop_place.T) - np.eye(4)).max() < 0.02  # crops are independent


@pytest.mark.parametrize("multiview", [0.0, 0.5, 1.0])
def test_a_fixed_share_of_pairs_at_every_step(multiview: float) -> None:
    draws = [draw_step(step, 100, 10_000, 1.0, 1.0, 0, multiview) for step in (0, 99)]
    assert [draw.is_multiview.mean() for draw in draws] == pytest.approx([multiview] * 2, abs=0.02)
    assert all(np.all(draw.crop_ratio == 1) for draw in draws)


def test_a_step_depends_on_nothing_but_its_number_and_the_seed() -> None:
    first, again, other = (draw_step(7, 10, 4, 1.0, 2.0, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.choice, again.choice)
    assert not np.array_equal(first.choice, other.choice)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="step 5 is not one of 5 steps"):
        multiview_probability(5, 5)
    with pytest.raises(ValueError, match=r"1 <= r_min <= r_max"):
        max_crop_ratio(0, 5, 2.0, 1.0)
