"""Whether pictures lie outside the trade-off curve of another training (Customized Generation Reimagined, Fig. 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.scoring.metrics import Interval

_RESAMPLES = 2000


def above_curve(
    point: Sequence[Mapping[str, Any]], curve: Sequence[Sequence[Mapping[str, Any]]], seed: int = 0
) -> Interval:
    """The subject similarity of a point minus that of a curve at the same prompt fidelity; above 0: it lies outside.

    The curve is straight between its points and level beyond their ends. Subjects are resampled, with all their rows.

    Args:
        point: Rows with "subject", "similarity" and "fidelity".
        curve: The same for each step of a training; the same subjects.
        seed: Of the resampling.
    """
    subjects = sorted({row["subject"] for row in point})
    scores = np.array([[_of_subject(rows, subject) for subject in subjects] for rows in (point, *curve)])
    draws = np.random.default_rng(seed).integers(len(subjects), size=(_RESAMPLES, len(subjects)))
    resampled = [_above(scores[:, draw].mean(1)) for draw in draws]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(mean=_above(scores.mean(1)), low=float(low), high=float(high))


def _of_subject(rows: Sequence[Mapping[str, Any]], subject: str) -> tuple[float, float]:
    own = [(row["fidelity"], row["similarity"]) for row in rows if row["subject"] == subject]
    fidelity, similarity = np.mean(own, 0)
    return float(fidelity), float(similarity)


def _above(means: NDArray[np.float64]) -> float:
    """Of the means (points, 2) of fidelity and similarity; the first point is compared with the curve of the others."""
    (fidelity, similarity), curve = means[0], means[1:]
    across, up = curve[np.argsort(curve[:, 0], kind="stable")].T
    return float(similarity - np.interp(fidelity, across, up))
