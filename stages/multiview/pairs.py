"""Which two views make a pair."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.schemas import content_id


@dataclass(frozen=True, kw_only=True)
class View:
    """A frame and its camera's rotation, world to camera, as a unit quaternion w, x, y, z."""

    frame_id: str
    rotation: tuple[float, float, float, float]


def viewing_direction(rotation: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """Where the camera looks, as a unit vector (3,) in the world: R^T (0, 0, 1), the third row of R."""
    w, x, y, z = rotation
    return np.array([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)])


def angle_degrees(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """The angle between two unit vectors, 0 to 180; exact also for small ones, where the arc cosine is not."""
    return float(np.degrees(2 * np.arctan2(np.linalg.norm(first - second), np.linalg.norm(first + second))))


def view_pairs(views: Sequence[View], limits: tuple[float, float], at_most: int, seed: int) -> list[dict[str, Any]]:
    """Ordered pairs (reference, target) whose angle lies within `limits` (degrees).

    When there are more than `at_most`, those with the smallest hash of seed and ids are taken: a random choice that
    does not depend on the order of the views.
    """
    directions = {view.frame_id: viewing_direction(view.rotation) for view in views}
    pairs = []
    for reference, target in itertools.permutations(sorted(directions), 2):
        angle = angle_degrees(directions[reference], directions[target])
        if limits[0] <= angle <= limits[1]:
            pairs.append(
                {
                    "pair_id": content_id(reference, target),
                    "reference_frame_id": reference,
                    "target_frame_id": target,
                    "angle_degrees": angle,
                }
            )
    pairs.sort(key=lambda pair: content_id(str(seed), str(pair["pair_id"])))
    return pairs[:at_most]
