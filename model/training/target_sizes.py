"""The sizes of a training's target pictures: phases of growing resolution, aspect buckets, SDXL's size conditioning.

A picture goes into the bucket whose sides' ratio is nearest to its own, so that little of it is cut off. All examples
of a step are of one bucket, because a batch has one shape (SDXL, Podell et al. 2023, Sec. 2.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: The longer side of a bucket is at most this many times its shorter side, as in SDXL's list.
MAX_ASPECT_RATIO = 4


class PictureSize(NamedTuple):
    """Height and width, pixels."""

    height: int
    width: int


@dataclass(frozen=True)
class Phase:
    """Steps of a training with one resolution.

    Attributes:
        first_step: From 0; the phase ends where the next one begins.
        resolution: Side of a square target, pixels. Every bucket has at most the area of this square.
    """

    first_step: int
    resolution: int


@dataclass(frozen=True, kw_only=True)
class TargetSizes:
    """The sizes of a training's targets.

    Attributes:
        phases: In their order; the first one begins at step 0.
        bucket_multiple: The sides of the buckets are multiples of this, pixels, and so is every resolution; None: all
            targets are squares.
    """

    phases: tuple[Phase, ...]
    bucket_multiple: int | None = None

    def of(self, step: int) -> list[PictureSize]:
        """The sizes that targets of a step may have: its buckets, or the square."""
        resolution = resolution_at(self.phases, step)
        if self.bucket_multiple is None:
            return [PictureSize(resolution, resolution)]
        return aspect_buckets(resolution, self.bucket_multiple)


def phases_of(steps: int, resolution: int, first_resolution: int | None, first_share: float) -> tuple[Phase, ...]:
    """One phase, or two: the first one has `first_share` of the steps, rounded."""
    begin = round(steps * first_share)
    if first_resolution is None or begin == 0:
        return (Phase(0, resolution),)
    return (Phase(0, first_resolution), *([Phase(begin, resolution)] if begin < steps else []))


def resolution_at(phases: Sequence[Phase], step: int) -> int:
    """The resolution of a step (from 0), pixels."""
    return next(phase.resolution for phase in reversed(phases) if phase.first_step <= step)


def aspect_buckets(resolution: int, multiple: int) -> list[PictureSize]:
    """The buckets of a resolution, from the lowest to the tallest; the square is one of them.

    Of each width (and of each height) that is a multiple, the bucket has the largest other side with which its area is
    at most resolution^2.

    Raises:
        ValueError: the resolution is no multiple of `multiple`.
    """
    if resolution % multiple:
        raise ValueError(f"resolution {resolution} is no multiple of {multiple}")
    shorter = [side for side in range(multiple, resolution + 1, multiple)]
    pairs = [(side, resolution**2 // side // multiple * multiple) for side in shorter]
    kept = [(side, longer) for side, longer in pairs if longer <= MAX_ASPECT_RATIO * side]
    return sorted(
        {PictureSize(*sides) for pair in kept for sides in (pair, pair[::-1])},
        key=lambda size: size.height / size.width,
    )


def nearest_buckets(heights: ArrayLike, widths: ArrayLike, buckets: Sequence[PictureSize]) -> NDArray[np.int64]:
    """For each picture the number of the bucket with the nearest ratio of its sides, on a logarithmic scale.

    Args:
        heights: (N,), pixels.
        widths: (N,), pixels.
        buckets: of `aspect_buckets`.
    """
    ratios = np.log([bucket.height / bucket.width for bucket in buckets])
    borders = (ratios[1:] + ratios[:-1]) / 2
    return np.searchsorted(borders, np.log(np.asarray(heights) / np.asarray(widths))).astype(np.int64)


def time_ids(original: PictureSize, target: PictureSize, x: float, y: float) -> list[int]:
    """SDXL's size conditioning (Podell et al. 2023, Secs. 2.2 and 2.3) of a target.

    Args:
        original: Of the picture, before anything was done to it.
        target: Of the target that is cut from it.
        x: Horizontal position of the crop, from 0 to 1.
        y: Vertical position.

    Returns:
        The original height and width; top and left of the crop, in pixels of the picture that is resized to cover the
        target; the target's height and width.
    """
    scale = max(target.height / original.height, target.width / original.width)
    top = round((original.height * scale - target.height) * y)
    left = round((original.width * scale - target.width) * x)
    return [*original, top, left, *target]
