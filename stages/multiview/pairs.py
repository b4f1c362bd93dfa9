"""Which two views make a pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.data.schemas import PAIRS, content_id

#: Pairs with what their choice hangs on: the place among the instance's pairs, and the lot that was drawn.
DRAWN = pa.schema([*PAIRS, pa.field("place", pa.int32()), pa.field("lot", pa.string())])


@dataclass(frozen=True, kw_only=True)
class View:
    """A frame and its camera's rotation, world to camera, as a unit quaternion w, x, y, z; None: not known."""

    frame_id: str
    rotation: tuple[float, float, float, float] | None


def viewing_direction(rotation: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """Where the camera looks, as a unit vector (3,) in the world: R^T (0, 0, 1), the third row of R."""
    w, x, y, z = rotation
    return np.array([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)])


def angles_degrees(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """The angles between unit vectors (n, 3), each with each (n, n), 0 to 180; exact also for small ones, where the
    arc cosine is not.
    """
    apart = np.linalg.norm(directions[:, None] - directions[None], axis=-1)
    together = np.linalg.norm(directions[:, None] + directions[None], axis=-1)
    return np.degrees(2 * np.arctan2(apart, together))


def view_pairs(views: Sequence[View], limits: tuple[float, float], at_most: int, seed: int) -> list[dict[str, Any]]:
    """Ordered pairs (reference, target) whose angle lies within `limits` (degrees); any two where cameras are unknown.

    When there are more than `at_most`, those with the smallest hash of seed and ids are taken: a random choice that
    does not depend on the order of the views.
    """
    ordered = sorted(views, key=lambda view: view.frame_id)
    rotations = [view.rotation for view in ordered if view.rotation is not None]
    angles: NDArray[np.float64] | None = None
    fitting = np.ones((len(ordered), len(ordered)), dtype=bool)
    if ordered and len(rotations) == len(ordered):
        angles = angles_degrees(np.stack([viewing_direction(rotation) for rotation in rotations]))
        fitting = (angles >= limits[0]) & (angles <= limits[1])
    np.fill_diagonal(fitting, False)
    pairs = []
    for first, second in np.argwhere(fitting):
        reference, target = ordered[first].frame_id, ordered[second].frame_id
        pair_id = content_id(reference, target)
        pairs.append(
            {
                "pair_id": pair_id,
                "reference_frame_id": reference,
                "target_frame_id": target,
                "angle_degrees": None if angles is None else float(angles[first, second]),
                "lot": content_id(str(seed), pair_id),
            }
        )
    pairs.sort(key=lambda pair: str(pair["lot"]))
    return [pair | {"place": place} for place, pair in enumerate(pairs[:at_most])]


def balance(pairs: pa.Table, per_category: int | None) -> pa.Table:
    """At most so many pairs of each category (schema `DRAWN`): every instance's first, then every one's second, ..."""
    if per_category is None or not pairs.num_rows:
        return pairs
    ordered = pairs.sort_by([("category", "ascending"), ("place", "ascending"), ("lot", "ascending")])
    _, category = np.unique(ordered["category"].to_numpy(zero_copy_only=False), return_inverse=True)
    first = np.searchsorted(category, category)  # of the same category
    return ordered.filter(pa.array(np.arange(len(category)) - first < per_category))
