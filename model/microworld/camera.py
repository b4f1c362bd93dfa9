"""Camera poses around an object: exact orthographic views, and the distant pinhole cameras that match them.

Axes. Object frame: x right, y up, z towards the viewer at yaw = pitch = 0. Camera frame (COLMAP): x right, y down,
z forward. A positive pitch looks down on the object. Angles are radians.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PINHOLE_DISTANCE = 200.0  # world units; perspective then moves no pixel by more than 0.3 % of the frame


def view_rotation(yaw: Tensor, pitch: Tensor) -> Tensor:
    """Camera axes (N, 3, 3) in the object frame for yaw, pitch (N,): rows are right, up and towards the viewer."""
    cy, sy, cp, sp = yaw.cos(), yaw.sin(), pitch.cos(), pitch.sin()
    right = torch.stack([cy, torch.zeros_like(cy), sy], -1)
    up = torch.stack([sp * sy, cp, -sp * cy], -1)
    back = torch.stack([-cp * sy, sp, cp * cy], -1)
    return torch.stack([right, up, back], 1)


@dataclass(frozen=True)
class CameraPose:
    """World-to-camera transform in COLMAP's convention: x_camera = rotation @ x_world + translation."""

    rotation: NDArray[np.float64]  # (3, 3)
    translation: NDArray[np.float64]  # (3,)

    @property
    def quaternion(self) -> NDArray[np.float64]:
        """COLMAP's qvec (w, x, y, z), w >= 0."""
        return quaternion_from_rotation(self.rotation)

    @property
    def centre(self) -> NDArray[np.float64]:
        """Position (3,) of the camera in the world."""
        return -self.rotation.T @ self.translation


@dataclass(frozen=True)
class PinholeIntrinsics:
    """COLMAP's SIMPLE_PINHOLE; lengths in pixels."""

    width: int
    height: int
    focal: float
    cx: float
    cy: float


def orbit_pose(yaw: float, pitch: float, distance: float = PINHOLE_DISTANCE) -> CameraPose:
    """Pose of a camera on the sphere of that radius, directed at the object's centre."""
    angles = torch.tensor([[yaw], [pitch]], dtype=torch.float64)
    right, up, back = view_rotation(angles[0], angles[1])[0].numpy()
    return CameraPose(np.stack([right, -up, -back]), np.array([0.0, 0.0, distance]))


def orbit_angles(pose: CameraPose) -> tuple[float, float]:
    """Yaw and pitch of a pose; the inverse of `orbit_pose`."""
    back = -pose.rotation[2]
    right = pose.rotation[0]
    return float(np.arctan2(right[2], right[0])), float(np.arcsin(np.clip(back[1], -1, 1)))


def matching_pinhole(size: int, pixels_per_unit: float, distance: float = PINHOLE_DISTANCE) -> PinholeIntrinsics:
    """The pinhole whose images agree with an orthographic frame of that resolution for points near the object."""
    return PinholeIntrinsics(size, size, pixels_per_unit * distance, size / 2, size / 2)


def quaternion_from_rotation(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unit quaternion (w, x, y, z), w >= 0, as the principal eigenvector of Bar-Itzhack's (2000) matrix."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    k = np.array(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, xy + yx, xz + zx],
            [xz - zx, xy + yx, yy - xx - zz, yz + zy],
            [yx - xy, xz + zx, yz + zy, zz - xx - yy],
        ]
    )
    quaternion: NDArray[np.float64] = np.linalg.eigh(k / 3)[1][:, -1]
    return quaternion if quaternion[0] >= 0 else -quaternion


def rotation_from_quaternion(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation (3, 3) of a unit quaternion (w, x, y, z)."""
    w, x, y, z = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
