"""Reader of the cameras of CO3D, version 1 or 2 (github.com/facebookresearch/co3d).

A category's `frame_annotations.jgz` is JSON, packed by gzip: a list of frames, each with its sequence, the path of its
picture and a viewpoint. That is PyTorch3D's: X_camera = X_world R + T with X to the left and Y upwards.
"""

from __future__ import annotations

import functools
import gzip
import json
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.files import printable_name
from stages.data.bulk_files import fetched
from stages.multiview.cameras import CameraError, RegisteredImage, registered_image
from stages.storage import StorePath

ANNOTATIONS = "frame_annotations.jgz"
_IMAGES = "images"
_FLIP = np.array([-1.0, -1.0, 1.0])  # from left and up to right and down
_LARGEST_DEVIATION = 1e-2  # of R R^T from the identity


def read_sequence(category: StorePath, sequence: str) -> list[RegisteredImage]:
    """The frames of a sequence with a viewpoint, in the order of the file.

    Args:
        category: The category's folder.
        sequence: The name of the sequence's folder.

    Raises:
        CameraError: The annotations are damaged, or they have no viewpoint of this sequence.
        OSError: There is no such file, or it cannot be read.
    """
    frames = _frames_of(category).get(sequence, [])
    images = [_image(frame) for frame in frames if frame.get("viewpoint")]
    if not images:
        raise CameraError(f"{ANNOTATIONS} has no viewpoint of {printable_name(sequence)}")
    return images


@functools.lru_cache(maxsize=1)  # sequences come category by category
def _frames_of(category: StorePath) -> Mapping[str, list[Mapping[str, Any]]]:
    try:
        with fetched(category / ANNOTATIONS) as file, gzip.open(file) as stream:
            frames = json.load(stream)
        sequences: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for frame in frames:
            sequences[frame["sequence_name"]].append(frame)
        return sequences
    except (gzip.BadGzipFile, EOFError, zlib.error, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CameraError(f"{ANNOTATIONS} is cut short or damaged: {type(error).__name__}: {error}") from error


def _image(frame: Mapping[str, Any]) -> RegisteredImage:
    try:
        viewpoint = frame["viewpoint"]
        path = PurePosixPath(frame["image"]["path"])
        rotation, translation = np.array(viewpoint["R"], np.float64), np.array(viewpoint["T"], np.float64)
        name = _below_images(path.parts)
        if rotation.shape != (3, 3) or translation.shape != (3,):
            raise CameraError(f"{ANNOTATIONS}: the viewpoint of {printable_name(name)} is no R (3 x 3) and T (3)")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CameraError):
            raise
        raise CameraError(f"{ANNOTATIONS} has a frame of another form ({type(error).__name__}: {error})") from error
    return registered_image(name, [*_quaternion(_FLIP[:, None] * rotation.T, name), *(_FLIP * translation)])


def _below_images(parts: Sequence[str]) -> str:
    """The path below the sequence's pictures: paths are written from the root of the dataset."""
    start = len(parts) - parts[::-1].index(_IMAGES) if _IMAGES in parts[:-1] else len(parts) - 1
    return "/".join(parts[start:])


def _quaternion(rotation: NDArray[np.float64], name: str) -> list[float]:
    """The unit quaternion w, x, y, z of a rotation (3, 3): the largest eigenvector of Bar-Itzhack's matrix.

    Raises:
        CameraError: The matrix is no rotation.
    """
    deviation = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if not deviation < _LARGEST_DEVIATION or np.linalg.det(rotation) < 0:
        raise CameraError(f"{ANNOTATIONS}: R of {printable_name(name)} is no rotation")
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation.tolist()
    _, vectors = np.linalg.eigh(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, xy + yx, xz + zx],
            [xz - zx, xy + yx, yy - xx - zz, yz + zy],
            [yx - xy, xz + zx, yz + zy, zz - xx - yy],
        ]
    )
    quaternion = vectors[:, -1]
    return list((quaternion if quaternion[0] >= 0 else -quaternion).tolist())
