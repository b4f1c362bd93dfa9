"""Selection of view pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.data.schemas import PAIRS, content_id

#: Pairs with the values that decide their selection: a random hash, and the rank by it within the instance.
RANKED_PAIRS = pa.schema([*PAIRS, pa.field("rank", pa.int32()), pa.field("hash", pa.string())])


@dataclass(frozen=True, kw_only=True)
class View:
    """A frame and its camera's rotation, world to camera, as a unit quaternion w, x, y, z; None when unknown."""

    frame_id: str
    rotation: tuple[float, float, float, float] | None


def viewing_direction(rotation: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """The camera's viewing direction, a unit vector (3,) in the world: R^T (0, 0, 1), the third row of R."""
    w, x, y, z = rotation
    return np.array([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)])


def angles_degrees(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """The angles (n, n) between all unit vectors (n, 3), from 0 to 180.

    Exact also for small angles, for which the arc cosine is not.
    """
    apart = np.linalg.norm(directions[:, None] - directions[None], axis=-1)
    together = np.linalg.norm(directions[:, None] + directions[None], axis=-1)
    return np.degrees(2 * np.arctan2(apart, together))


def view_pairs(views: Sequence[View], limits: tuple[float, float], at_most: int, seed: int) -> list[dict[str, Any]]:
    """Ordered pairs (reference, target) whose angle lies within `limits` (degrees); all pairs if cameras are unknown.

    If there are more than `at_most`, those with the smallest hash of seed and ids are taken. This random choice does
    not depend on the order of the views.
    """
    ordered = sorted(views, key=lambda view: view.frame_id)
    angles = _angles_of(ordered)
    fitting = np.ones((len(ordered), len(ordered)), dtype=bool)
    if angles is not None:
        fitting = (angles >= limits[0]) & (angles <= limits[1])
    np.fill_diagonal(fitting, False)
    pairs = []
    for first, second in np.argwhere(fitting):
        reference, target = ordered[first].frame_id, ordered[second].frame_id
        pair_id = content_id(reference, target)
        angle = None if angles is None else float(angles[first, second])
        columns = {"reference_frame_id": reference, "target_frame_id": target, "angle_degrees": angle}
        pairs.append({"pair_id": pair_id, **columns, "hash": content_id(str(seed), pair_id)})
    pairs.sort(key=lambda pair: str(pair["hash"]))
    return [pair | {"rank": rank} for rank, pair in enumerate(pairs[:at_most])]


def _angles_of(views: Sequence[View]) -> NDArray[np.float64] | None:
    """The angles between all views; None unless the cameras of all are known."""
    rotations = [view.rotation for view in views if view.rotation is not None]
    if not views or len(rotations) < len(views):
        return None
    return angles_degrees(np.stack([viewing_direction(rotation) for rotation in rotations]))


def balance(pairs: pa.Table, per_category: int | None) -> pa.Table:
    """At most `per_category` pairs of each category (schema `RANKED_PAIRS`).

    The first pair of each instance is taken before the second pair of any.
    """
    if per_category is None or not pairs.num_rows:
        return pairs
    ordered = pairs.sort_by([("category", "ascending"), ("rank", "ascending"), ("hash", "ascending")])
    _, category = np.unique(ordered["category"].to_numpy(zero_copy_only=False), return_inverse=True)
    first = np.searchsorted(category, category)  # row of the same category
    return ordered.filter(pa.array(np.arange(len(category)) - first < per_category))
