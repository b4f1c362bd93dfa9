"""The curriculum training recipe of RealCustom++ (Sec. III-C, Eqs. 10-11).

During training, pairs of views gradually replace generic text-image samples, and the crops of the reference get
smaller: from an easy problem (copy the reference) to the real one (generate the subject from another view, or a part).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.errors import ModelError


def progress(step: int, total: int) -> float:
    """S_cur / S_total, for the steps 0 to total - 1."""
    if not 0 <= step < total:
        raise ValueError(f"step {step} is not one of {total} steps")
    return step / total


def multiview_probability(step: int, total: int) -> float:
    """P_multiview of Eq. 10; a generic text-image sample is drawn with probability 1 - P_multiview."""
    return progress(step, total)


def max_crop_ratio(step: int, total: int, r_min: float, r_max: float) -> float:
    """r_cur of Eq. 11: the largest factor by which the reference is enlarged before its crop."""
    if not 1 <= r_min <= r_max:
        raise ModelError(f"crop ratios must satisfy 1 <= r_min <= r_max, but r_min = {r_min:g} and r_max = {r_max:g}.")
    return r_min + (r_max - r_min) * progress(step, total)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The examples of a training run of `steps` steps with `batch_size` examples each: Eqs. 10-11 or a row of Table X.

    | Table X | `multiview` | `r_max` | `crops` |
    |---|---|---|---|
    | No. 1, text-image pairs only | 0 | 1 | |
    | No. 2, multiview pairs only | 1 | 1 | |
    | No. 3, half and half | 0.5 | 1 | |
    | No. 4, curriculum data | None | 1 | |
    | No. 5, with random crops | None | sqrt(10) | "random" |
    | No. 6, with curriculum crops: RealCustom++ | None | sqrt(10) | "curriculum" |

    Attributes:
        steps: S_total.
        batch_size: B.
        r_min: The smallest crop ratio; 1 is the whole reference.
        r_max: The largest.
        multiview: A constant share of multiview pairs instead of P_multiview; None is Eq. 10.
        crops: "curriculum" draws from [r_min, r_cur] of Eq. 11, "random" always from [r_min, r_max].
    """

    steps: int
    batch_size: int
    r_min: float
    r_max: float
    multiview: float | None = None
    crops: Literal["curriculum", "random"] = "curriculum"

    def multiview_share(self, step: int) -> float:
        """The probability that an example of this step is a pair of views."""
        return multiview_probability(step, self.steps) if self.multiview is None else self.multiview

    def largest_crop_ratio(self, step: int) -> float:
        """The upper end of the range of this step's crop ratios."""
        growing = max_crop_ratio(step, self.steps, self.r_min, self.r_max)
        return growing if self.crops == "curriculum" else self.r_max


@dataclass(frozen=True)
class StepDraws:
    """The random draws for the B examples of one step."""

    source: NDArray[np.float64]  # (B,) in [0, 1): a pair of views where it is below their share
    choice: NDArray[np.float64]  # (B,) in [0, 1): selects a pair or sample of the source
    crop_ratio: NDArray[np.float64]  # (B,) r_sample of Eq. 11
    crop_position: NDArray[np.float64]  # (B, 4) in [0, 1): x, y of the reference's crop; x, y of the target's
    bucket: float  # in [0, 1): selects the bucket of the step's targets


def draw_step(recipe: Recipe, step: int, seed: int) -> StepDraws:
    """The draws of one step (Eqs. 10-11): a function of its arguments, independent of other steps.

    The examples are independent, and so are the crops of reference and target.
    """
    rng = np.random.default_rng([seed, step])
    uniform = rng.random((recipe.batch_size, 7))
    return StepDraws(
        source=uniform[:, 0],
        choice=uniform[:, 1],
        crop_ratio=recipe.r_min + (recipe.largest_crop_ratio(step) - recipe.r_min) * uniform[:, 2],
        crop_position=uniform[:, 3:],
        bucket=rng.random(),
    )
