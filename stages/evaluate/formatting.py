"""How numbers are written in the report and its findings."""

from __future__ import annotations

from model.scoring.metrics import Interval


def mean(value: float) -> str:
    """A mean: three decimals."""
    return f"{value:.3f}"


def score(value: float) -> str:
    """The score of a single picture: two decimals."""
    return f"{value:.2f}"


def bounds(interval: Interval) -> str:
    """The bounds of a 95 % interval."""
    return f"{score(interval.low)} to {score(interval.high)}"


def difference(interval: Interval) -> str:
    """A difference with its 95 % interval, signed."""
    return f"{interval.mean:+.3f}, 95 % interval {interval.low:+.3f} to {interval.high:+.3f}"


def percent(value: float) -> str:
    """A share of 100."""
    return f"{value:.1f} %"


def is_significant(interval: Interval) -> bool:
    """Whether the 95 % interval of a difference excludes zero."""
    return interval.low > 0 or interval.high < 0


#: By their names in the templates.
FILTERS = {function.__name__: function for function in (mean, score, bounds, percent)}
