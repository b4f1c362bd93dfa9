"""Frames of instance folders: the pictures, with their cameras where these are known."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from model.pictures.decoding import PictureError, is_picture_file, open_picture
from stages.data.jpeg import encode_jpeg, is_stored_form
from stages.data.schemas import FRAMES, content_id
from stages.multiview.colmap import ColmapError, read_images

CATEGORY_FILE = "mvimgnet_category.txt"

#: A frame; or, with a null id, a problem, and whether it concerns a whole instance.
READ = pa.schema(
    [field.with_nullable(True) for field in FRAMES] + [("problem", pa.string()), ("is_instance", pa.bool_())]
)


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One object.

    Attributes:
        folder: The folder's path.
        category: The name of the class.
        name: Unique within the category.
        has_cameras: Whether the folder has MVImgNet's layout; otherwise it holds only pictures.
    """

    folder: str
    category: str
    name: str
    has_cameras: bool


def category_names(root: Path) -> dict[str, str]:
    """MVImgNet's mapping from class labels (the folders' names) to class names; empty without the file."""
    file = root / CATEGORY_FILE
    if not file.is_file():
        return {}
    pairs = (line.split(",", 1) for line in file.read_text(errors="replace").splitlines() if "," in line)
    return {label.strip(): name.strip().lower() for label, name in pairs}


def find_instances(roots: Iterable[Path]) -> tuple[list[Instance], list[str]]:
    """The instances below the roots, sorted within each root, and a description of each repeated one."""
    found: dict[tuple[str, str], Instance] = {}
    repeated: list[str] = []
    for root in roots:
        names = category_names(root)
        for instance in sorted([*_turntables(root, names), *_subjects(root, names)], key=lambda one: one.folder):
            first = found.setdefault((instance.category, instance.name), instance)
            if first is not instance:
                repeated.append(f"the instance {instance.folder}: {first.folder} has the same class and name")
    return list(found.values()), repeated


def _turntables(root: Path, names: dict[str, str]) -> Iterator[Instance]:
    """MVImgNet's layout: class_label/instance_id with images/ or sparse/."""
    folders = {folder.parent for name in ("images", "sparse") for folder in root.glob(f"*/*/{name}") if folder.is_dir()}
    for folder in folders:
        label = folder.parent.name
        yield Instance(folder=str(folder), category=names.get(label, label), name=folder.name, has_cameras=True)


def _subjects(root: Path, names: dict[str, str]) -> Iterator[Instance]:
    """The plain layout: a folder of pictures for each subject. Its class is its name without a number ("dog2": dog)."""
    for folder in root.iterdir():
        if folder.is_dir() and any(is_picture_file(file) for file in folder.iterdir()):
            words = re.sub(r"[_\s]*\d*$", "", folder.name).replace("_", " ").strip().lower() or folder.name
            category, name = names.get(folder.name, words), f"{root.name}/{folder.name}"
            yield Instance(folder=str(folder), category=category, name=name, has_cameras=False)


def read_instances(batch: pa.Table, image_size: int, min_foreground: float) -> pa.Table:
    """The frames (schema `READ`) of the instances in the batch's rows (the fields of `Instance`)."""
    rows: list[dict[str, Any]] = []
    for row in batch.to_pylist():
        rows += read_instance(Instance(**row), image_size, min_foreground)
    return pa.Table.from_pylist(rows, schema=READ)


def read_instance(instance: Instance, image_size: int, min_foreground: float) -> list[dict[str, Any]]:
    """The frames of one instance and the problems with others; one problem if fewer than two frames are readable."""
    folder = Path(instance.folder)
    short_name = f"{folder.parent.name}/{folder.name}"
    try:
        frames = list(_frames_of(instance))
    except (ColmapError, OSError) as error:
        return [_problem(f"the instance {short_name}: {error}", is_instance=True)]
    rows = []
    for name, camera in frames:
        try:
            rows.append(_read_frame(instance, name, image_size, min_foreground) | camera)
        except (OSError, PictureError) as error:
            rows.append(_problem(f"the frame {short_name}/{name}: {error}", is_instance=False))
    if sum("frame_id" in row for row in rows) < 2:
        return [_problem(f"the instance {short_name}: fewer than two of its frames are readable", is_instance=True)]
    return rows


def _read_frame(instance: Instance, name: str, image_size: int, min_foreground: float) -> dict[str, Any]:
    """A frame without its camera."""
    folder = Path(instance.folder)
    file = folder / "images" / Path(name).name if instance.has_cameras else folder / name
    check_foreground(folder / "masks", file.name, min_foreground)
    picture, (width, height) = load_frame(file, image_size)
    return {
        "frame_id": content_id(instance.category, instance.name, name),
        "category": instance.category,
        "instance": instance.name,
        "picture": picture,
        "width": width,
        "height": height,
    }


def _frames_of(instance: Instance) -> Iterator[tuple[str, dict[str, Any]]]:
    """File names and cameras; a camera is empty if it is unknown."""
    folder = Path(instance.folder)
    if not instance.has_cameras:
        yield from ((file.name, {}) for file in sorted(folder.iterdir()) if is_picture_file(file))
        return
    for image in read_images(folder / "sparse" / "0"):
        camera = asdict(image)
        yield camera.pop("name"), camera


def _problem(text: str, *, is_instance: bool) -> dict[str, Any]:
    return {"problem": text, "is_instance": is_instance}


def check_foreground(masks: Path, name: str, min_foreground: float) -> None:
    """Check that the mask of a frame covers enough of it. A frame without a mask passes.

    The mask of `001.jpg` is `001.jpg.png` (as in COLMAP and MVImgNet) or `001.png`, white on the object.

    Raises:
        PictureError: The mask covers too little, or is not a picture.
    """
    for file in (masks / f"{name}.png", masks / f"{Path(name).stem}.png"):
        if not file.is_file():
            continue
        with open_picture(file.read_bytes(), name=f"the mask {file.name}") as opened:
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
