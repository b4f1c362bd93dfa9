"""Reader of the camera poses in a COLMAP model, text or binary (colmap.github.io/format.html)."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_POSE = struct.Struct("<I7dI")  # image id, qvec, tvec, camera id
_COUNT = struct.Struct("<Q")
_POINT_BYTES = 24  # x, y as doubles and the id of the 3-D point


class ColmapError(ValueError):
    """A COLMAP model that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class RegisteredImage:
    """An image with its camera's pose, world to camera.

    Attributes:
        name: File name, relative to the image folder.
        rotation: Unit quaternion w, x, y, z.
        translation: x, y, z in the model's units.
    """

    name: str
    rotation: tuple[float, float, float, float]
    translation: tuple[float, float, float]


def read_images(sparse: Path) -> list[RegisteredImage]:
    """The registered images of the model in `sparse`, in the order of the file. A binary file is preferred.

    Raises:
        ColmapError: There is no such file, or it is damaged.
    """
    binary, text = sparse / "images.bin", sparse / "images.txt"
    if binary.is_file():
        return list(_parse_binary(binary.read_bytes()))
    if text.is_file():
        try:
            return list(_parse_text(text.read_text()))
        except UnicodeDecodeError as error:
            raise ColmapError("images.txt is not text") from error
    raise ColmapError("sparse/0 has neither images.bin nor images.txt")


def _parse_text(content: str) -> Iterator[RegisteredImage]:
    """Each image has two lines: its pose, and its points, whose line may be empty."""
    lines = [line for line in content.splitlines() if not line.startswith("#")]
    for line in lines[::2]:
        if not line.strip():
            continue
        fields = line.split(maxsplit=9)
        if len(fields) != 10:
            raise ColmapError(f"images.txt has a pose line with {len(fields)} of 10 fields")
        try:
            numbers = [float(field) for field in fields[1:8]]
        except ValueError as error:
            raise ColmapError(f"images.txt: {error}") from error
        yield _image(fields[9].strip(), numbers)


def _parse_binary(content: bytes) -> Iterator[RegisteredImage]:
    try:
        (count,) = _COUNT.unpack_from(content)
        offset = _COUNT.size
        for _ in range(count):
            _, *numbers, _ = _POSE.unpack_from(content, offset)
            offset += _POSE.size
            end = content.index(b"\0", offset)
            name = content[offset:end].decode()
            (points,) = _COUNT.unpack_from(content, end + 1)
            offset = end + 1 + _COUNT.size + points * _POINT_BYTES
            if offset > len(content):
                raise ColmapError("images.bin is cut short")
            yield _image(name, numbers)
    except (struct.error, ValueError) as error:
        raise ColmapError(f"images.bin is cut short or damaged: {error}") from error


def _image(name: str, numbers: list[float]) -> RegisteredImage:
    """Check the numbers, and normalize the quaternion."""
    w, x, y, z, tx, ty, tz = numbers
    length = math.sqrt(w * w + x * x + y * y + z * z)
    if not math.isfinite(length + tx + ty + tz) or length < 1e-8:
        raise ColmapError(f"the pose of {name} is not finite, or has no rotation")
    if abs(length - 1) > 1e-12:
        w, x, y, z = w / length, x / length, y / length, z / length
    return RegisteredImage(name=name, rotation=(w, x, y, z), translation=(tx, ty, tz))
