"""Reader of the camera poses in a COLMAP model, text or binary (colmap.github.io/format.html)."""

from __future__ import annotations

import codecs
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from model.files import TextError, decode_text
from stages.multiview.cameras import CameraError, RegisteredImage, registered_image

_POSE = struct.Struct("<I7dI")  # image id, qvec, tvec, camera id
_COUNT = struct.Struct("<Q")
_POINT_BYTES = 24  # x, y as doubles and the id of the 3-D point


def model_folder(instance: Path) -> Path:
    """The folder of an instance's model: `sparse/0`, or `sparse` itself if the files are there.

    Raises:
        CameraError: None of the files is there.
    """
    for sparse in (instance / "sparse" / "0", instance / "sparse"):
        if (sparse / "images.bin").is_file() or (sparse / "images.txt").is_file():
            return sparse
    raise CameraError("neither sparse/0 nor sparse has images.bin or images.txt")


def read_images(sparse: Path) -> list[RegisteredImage]:
    """The registered images of the model in `sparse`, in the order of the file. A binary file is preferred.

    Raises:
        CameraError: The file is damaged.
        OSError: There is no such file, or it cannot be read.
    """
    binary = sparse / "images.bin"
    if binary.is_file():
        return list(_parse_binary(binary.read_bytes()))
    return list(_parse_text(_decode((sparse / "images.txt").read_bytes())))


def _decode(data: bytes) -> str:
    """Text by its byte order mark. Names need not be UTF-8: they are what the files are called on disk."""
    try:
        return decode_text(data)
    except TextError:
        return os.fsdecode(data.removeprefix(codecs.BOM_UTF8))


def _parse_text(content: str) -> Iterator[RegisteredImage]:
    """Each image has two lines: its pose, and its points, whose line may be empty, or missing at the end.

    As in COLMAP's reader, empty lines are skipped before a pose, and spaces around a line do not count.
    """
    is_after_pose = False
    for line in (line.strip(" \t\r") for line in content.split("\n")):
        if line.startswith("#"):
            continue
        is_points, is_after_pose = is_after_pose and _is_points(line), False
        if line and not is_points:
            yield _parse_pose(line)
            is_after_pose = True


def _is_points(line: str) -> bool:
    """Whether a line holds numbers in threes: x, y and the id of the 3-D point."""
    fields = line.split()  # may be many: the first and the last say enough
    return len(fields) % 3 == 0 and all(map(_is_number, fields[:1] + fields[-1:]))


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _parse_pose(line: str) -> RegisteredImage:
    fields = line.split(maxsplit=9)
    if len(fields) != 10:
        raise CameraError(f"images.txt has a pose line with {len(fields)} of 10 fields")
    try:
        numbers = [float(field) for field in fields[1:8]]
    except ValueError as error:
        raise CameraError(f"images.txt: {error}") from error
    return registered_image(fields[9], numbers)


def _parse_binary(content: bytes) -> Iterator[RegisteredImage]:
    try:
        (count,) = _COUNT.unpack_from(content)
        offset = _COUNT.size
        for _ in range(count):
            _, *numbers, _ = _POSE.unpack_from(content, offset)
            offset += _POSE.size
            end = content.index(b"\0", offset)
            name = os.fsdecode(content[offset:end])
            (points,) = _COUNT.unpack_from(content, end + 1)
            offset = end + 1 + _COUNT.size + points * _POINT_BYTES
            if offset > len(content):
                raise CameraError("images.bin is cut short")
            yield registered_image(name, numbers)
    except CameraError:
        raise
    except (struct.error, ValueError) as error:
        raise CameraError(f"images.bin is cut short or damaged: {error}") from error
