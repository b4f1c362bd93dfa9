"""The curriculum training recipe of RealCustom++ (Sec. III-C, Eqs. 10-11).

In the course of training, generic text-image samples give way to pairs of views, and the crop of the reference may get
smaller: from what is easy (copy what you see) to what is wanted (paint the subject from elsewhere, from a part of it).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def progress(step: int, total: int) -> float:
    """S_cur / S_total, for the steps 0 to total - 1."""
    if not 0 <= step < total:
        raise ValueError(f"step {step} is not one of {total} steps")
    return step / total


def multiview_probability(step: int, total: int) -> float:
    """P_multiview of Eq. 10; a generic text-image sample is drawn with the rest, 1 - P_multiview."""
    return progress(step, total)


def max_crop_ratio(step: int, total: int, r_min: float, r_max: float) -> float:
    """r_cur of Eq. 11: how far the reference may be enlarged before its crop is taken."""
    if not 1 <= r_min <= r_max:
        raise ValueError(f"crop ratios must satisfy 1 <= r_min <= r_max, not r_min = {r_min:g}, r_max = {r_max:g}")
    return r_min + (r_max - r_min) * progress(step, total)


@dataclass(frozen=True)
class StepDraws:
    """What is drawn for the B examples of one step."""

    is_multiview: NDArray[np.bool_]  # (B,)
    choice: NDArray[np.float64]  # (B,) in [0, 1): which of the source's pairs or samples
    crop_ratio: NDArray[np.float64]  # (B,) r_sample of Eq. 11
    crop_place: NDArray[np.float64]  # (B, 4) in [0, 1): x, y of the reference's crop, x, y of the target's


def draw_step(
    step: int, total: int, batch: int, r_min: float, r_max: float, seed: int, multiview: float | None = None
) -> StepDraws:
    """The draws of one step (Eqs. 10-11): a function of its arguments, whatever other steps have drawn.

    The crops of reference and target are independent, as are all examples. `multiview` takes the place of P_multiview:
    0 for RealCustom, 0, 1 and 0.5 for ablations of RealCustom++ (Table X); None is Eq. 10.
    """
    rng = np.random.default_rng([seed, step])
    uniform = rng.random((batch, 7))
    largest = max_crop_ratio(step, total, r_min, r_max)
    probability = multiview_probability(step, total) if multiview is None else multiview
    return StepDraws(
        is_multiview=uniform[:, 0] < probability,
        choice=uniform[:, 1],
        crop_ratio=r_min + (largest - r_min) * uniform[:, 2],
        crop_place=uniform[:, 3:],
    )
