"""Frames of instance folders: the pictures, with their cameras where these are known."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from PIL import Image

from model.files import printable_name
from model.pictures.decoding import PictureError, open_picture, picture_files
from stages.contract import StageError
from stages.data.bulk_files import fetched_folder, unseen
from stages.data.jpeg import encode_jpeg, is_stored_form
from stages.data.schemas import FRAMES, content_id
from stages.multiview import co3d
from stages.multiview.cameras import CameraError, RegisteredImage, relative_path
from stages.multiview.colmap import model_folder, read_images
from stages.multiview.layouts import SUBJECT_FOLDERS, Instance
from stages.storage import store_path

_IMAGES, _MASKS = "images", "masks"
#: Of an instance, what is fetched from a store: not point clouds and depth maps, which are larger than the pictures.
_SPARSE = ("sparse/images", "sparse/0/images")
_UNREAD = ("sparse/", "depths/", "depth_masks/", "pointcloud")

_Frame = TypeVar("_Frame")

#: A frame; or, with a null id, a problem, and whether it concerns a whole instance.
READ = pa.schema(
    [field.with_nullable(True) for field in FRAMES] + [("problem", pa.string()), ("is_instance", pa.bool_())]
)


def instance_table(instances: Iterable[Instance]) -> pa.Table:
    """Instances for `read_instances`. Their paths are bytes, because names on disk need not be UTF-8."""
    rows = [vars(instance) | {"folder": os.fsencode(str(instance.folder))} for instance in instances]
    return pa.Table.from_pylist(rows)


def read_instances(batch: pa.Table, image_size: int, min_foreground: float, most_frames: int | None = None) -> pa.Table:
    """The frames (schema `READ`) of the instances of an `instance_table`.

    Args:
        batch: The instances.
        image_size: See `load_frame`.
        min_foreground: See `check_foreground`.
        most_frames: Of an instance with more, as many are read, evenly spread; None: all.

    Raises:
        StageError: A folder is not on this machine.
    """
    rows: list[dict[str, Any]] = []
    for row in batch.to_pylist():
        folder = store_path(os.fsdecode(row.pop("folder")))
        rows += read_instance(Instance(folder=folder, **row), image_size, min_foreground, most_frames)
    return pa.Table.from_pylist(rows, schema=READ)


def read_instance(
    instance: Instance, image_size: int, min_foreground: float, most_frames: int | None = None
) -> list[dict[str, Any]]:
    """The frames of one instance and the problems with others; one problem if fewer than two frames are readable.

    Raises:
        StageError: The folder is not on this machine.
    """
    with fetched_folder(instance.folder, _is_read) as folder:
        if not os.path.isdir(folder):
            raise StageError(unseen("multiview.folders", folder))
        return _read_instance(instance, folder, image_size, min_foreground, most_frames)


def _is_read(name: str) -> bool:
    """Whether a file of an instance is read: of COLMAP's model only the cameras are."""
    return name.startswith(_SPARSE) or not name.startswith(_UNREAD)


def _read_instance(
    instance: Instance, folder: Path, image_size: int, min_foreground: float, most_frames: int | None
) -> list[dict[str, Any]]:
    short_name = printable_name(f"{instance.folder.parent.name}/{instance.folder.name}")
    try:
        frames = _spread(list(_frames_of(instance, folder)), most_frames)
    except (CameraError, OSError) as error:
        return [_problem(f"the instance {short_name}: {error}", is_instance=True)]
    rows, read = [], set[PurePosixPath]()
    for name, camera in frames:
        try:
            path = PurePosixPath(name) if instance.layout == "pictures" else relative_path(name)
            if path in read:
                raise CameraError("it is registered twice")
            read.add(path)
            rows.append(_read_frame(instance, folder, path, image_size, min_foreground) | camera)
        except (CameraError, OSError, PictureError) as error:
            reason = error.strerror or error if isinstance(error, OSError) else error
            rows.append(_problem(f"the frame {short_name}/{printable_name(name)}: {reason}", is_instance=False))
    if sum("frame_id" in row for row in rows) < 2:
        first = next((f"; first: {row['problem']}" for row in rows if "problem" in row), "")
        text = f"the instance {short_name}: fewer than two of its frames are readable{first}"
        return [_problem(text, is_instance=True)]
    return rows


def _read_frame(
    instance: Instance, folder: Path, path: PurePosixPath, image_size: int, min_foreground: float
) -> dict[str, Any]:
    """The frame of a picture, given its path below the folder of the pictures; without its camera."""
    file = (folder if instance.layout == "pictures" else folder / _IMAGES) / path
    if not os.path.isfile(file):
        raise PictureError("there is no such file")
    check_foreground(_masks(instance, folder), path, min_foreground)
    picture, (width, height) = load_frame(file, image_size)
    return {
        "frame_id": content_id(instance.category, instance.name, printable_name(path)),
        "category": instance.category,
        "instance": instance.name,
        "picture": picture,
        "width": width,
        "height": height,
    }


def _masks(instance: Instance, folder: Path) -> Path:
    """The folder of the masks: beside the pictures' own folder, if they have one. From a store only that is fetched."""
    is_beside = instance.layout == "pictures" and isinstance(instance.folder, Path)
    return (folder.parent if is_beside and folder.name.lower() in SUBJECT_FOLDERS else folder) / _MASKS


def _frames_of(instance: Instance, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names of the pictures and cameras; a camera is empty if it is unknown."""
    if instance.layout == "pictures":
        yield from ((file.name, {}) for file in picture_files(folder))
        return
    for image in _registered(instance, folder):
        camera = asdict(image)
        yield camera.pop("name"), camera


def _spread(frames: list[_Frame], most: int | None) -> list[_Frame]:
    """As many of the frames, evenly spread: of a video, neighbours show the same."""
    if most is None or len(frames) <= most:
        return frames
    return [frames[number * len(frames) // most] for number in range(most)]


def _registered(instance: Instance, folder: Path) -> list[RegisteredImage]:
    if instance.layout == "co3d":
        return co3d.read_sequence(instance.folder.parent, instance.folder.name)
    return read_images(model_folder(folder))


def _problem(text: str, *, is_instance: bool) -> dict[str, Any]:
    return {"problem": text, "is_instance": is_instance}


def check_foreground(masks: Path, path: PurePosixPath, min_foreground: float) -> None:
    """Check that the mask of a frame covers enough of it. A frame without a mask passes.

    The mask of `left/001.jpg` is `left/001.jpg.png` (as in COLMAP and MVImgNet) or `left/001.png`, white on the object;
    what is transparent is not the object.

    Raises:
        PictureError: The mask covers too little, or is not a picture.
    """
    for file in (masks / f"{path}.png", masks / path.with_suffix(".png")):
        if not file.is_file():
            continue
        with open_picture(file.read_bytes(), name=f"the mask {printable_name(file.name)}") as opened:
            mask = opened.upright_rgb(background="black").convert("L")
        share = float((np.asarray(mask) > 127).mean())
        if share < min_foreground:
            raise PictureError(f"its mask covers {share:.2%} of the picture, less than {min_foreground:.2%}")
        return


def load_frame(file: Path, image_size: int) -> tuple[bytes, tuple[int, int]]:
    """The picture as the datasets store it, its shorter side at most `image_size`, and its size (width, height).

    A file that already is in this form is returned as it is, after a full decoding.

    Raises:
        PictureError: The file is not a picture, or is damaged.
    """
    data = file.read_bytes()
    with open_picture(data) as opened:
        is_stored = is_stored_form(opened)
        picture = opened.upright_rgb()
    scale = image_size / min(picture.size)
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    elif is_stored:
        return data, picture.size
    return encode_jpeg(picture), picture.size
