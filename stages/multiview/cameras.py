"""Registered images: a picture's path and its camera, whatever wrote them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from model.files import printable_name

_DRIVE = re.compile("[A-Za-z]:")  # of Windows


class CameraError(ValueError):
    """Cameras that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class RegisteredImage:
    """An image with its camera's pose, world to camera. The camera's axes are COLMAP's: right, down, forward.

    Attributes:
        name: Path of the file, relative to the image folder, with "/" between its parts.
        rotation: Unit quaternion w, x, y, z.
        translation: x, y, z in the model's units.
    """

    name: str
    rotation: tuple[float, float, float, float]
    translation: tuple[float, float, float]


def registered_image(name: str, numbers: Sequence[float]) -> RegisteredImage:
    """An image from its quaternion w, x, y, z, which is normalized, and its translation x, y, z.

    Raises:
        CameraError: A number is not finite, or the quaternion is zero.
    """
    w, x, y, z, tx, ty, tz = numbers
    length = math.sqrt(w * w + x * x + y * y + z * z)
    if not math.isfinite(length + tx + ty + tz) or length < 1e-8:
        raise CameraError(f"the pose of {printable_name(name)} is not finite, or has no rotation")
    if abs(length - 1) > 1e-12:
        w, x, y, z = w / length, x / length, y / length, z / length
    return RegisteredImage(name=name, rotation=(w, x, y, z), translation=(tx, ty, tz))


def relative_path(name: str) -> PurePosixPath:
    """The path of an image's file below the image folder. As in COLMAP, "\\" separates folders as "/" does.

    Raises:
        CameraError: The path leads out of the image folder.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or _DRIVE.match(name) or not path.name:
        raise CameraError(f"the name {printable_name(name)} is no path below images/: write it relative to that folder")
    return path
