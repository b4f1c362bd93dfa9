"""The distance of pictures from a trade-off curve, from handmade scores."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.benchmarks.support.trade_off_curve import above_curve

Rows = list[dict[str, object]]


def rows(fidelity: float, similarities: Sequence[float]) -> Rows:
    """A picture of each subject."""
    return [
        {"subject": str(number), "fidelity": fidelity, "similarity": own} for number, own in enumerate(similarities)
    ]


CURVE = [rows(1.0, [0.1, 0.1]), rows(0.5, [0.3, 0.5])]  # at 0.75 a similarity of 0.25


@pytest.mark.parametrize(
    ("fidelity", "similarity", "expected"),
    [
        (0.75, 0.25, 0.0),
        (0.75, 0.4, 0.15),
        (0.75, 0.1, -0.15),
        (1.0, 0.1, 0.0),
        (0.5, 0.4, 0.0),
        (0.2, 0.4, 0.0),  # the curve is level beyond its end
    ],
)
def test_a_point_is_compared_with_the_curve_at_its_fidelity(
    fidelity: float, similarity: float, expected: float
) -> None:
    point = rows(fidelity, [similarity - 0.1, similarity + 0.1])
    for curve in (CURVE, CURVE[::-1]):
        found = above_curve(point, curve)
        assert found.mean == pytest.approx(expected)
        assert found.low <= found.mean <= found.high


def test_subjects_are_resampled_with_all_their_rows() -> None:
    """What is the same for every subject is certain, however much subjects differ."""
    point = rows(0.5, [0.4, 0.6])  # 0.1 above the curve's end for both
    found = above_curve(point, CURVE)
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))
