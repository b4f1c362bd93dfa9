"""Frames of instance folders: the pictures, with their cameras where these are known."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from upath import UPath

from model.files import is_hidden, is_utf8, printable_name, read_text, visible_entries
from model.pictures.decoding import PICTURE_SUFFIXES, PictureError, open_picture, picture_files
from stages.class_words import word_of_folder
from stages.contract import StageError
from stages.data.bulk_files import fetched_folder, unseen
from stages.data.jpeg import encode_jpeg, is_stored_form
from stages.data.schemas import FRAMES, content_id
from stages.multiview.colmap import ColmapError, model_folder, read_images, relative_path
from stages.storage import StorePath, name_below, names_below, store_path

_MARKS = ("images", "sparse")
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

    folder: StorePath
    category: str
    name: str
    has_cameras: bool


def category_names(root: StorePath) -> dict[str, str]:
    """MVImgNet's mapping from class labels (the folders' names) to class names; empty without the file.

    Raises:
        TextError: The file is not text.
    """
    file = root / CATEGORY_FILE
    if not file.is_file():
        return {}
    pairs = (line.split(",", 1) for line in read_text(file).splitlines() if "," in line)
    return {label.strip(): name.strip().lower() for label, name in pairs}


def find_instances(roots: Iterable[StorePath]) -> tuple[list[Instance], list[str]]:
    """The instances below the roots, sorted within each root, and a description of each that is left out.

    Left out are those with the class and name of another, and those whose class is a name that is not UTF-8.
    """
    found: dict[tuple[str, str], Instance] = {}
    left_out: list[str] = []
    for root in roots:
        names = category_names(root)
        turntables, subjects = _folders(root)
        instances = [*_turntables(turntables, names), *_subjects(subjects, root.name, names)]
        for instance in sorted(instances, key=lambda one: name_below(one.folder, root).split("/")):
            place = f"the instance {printable_name(str(instance.folder))}"
            if not is_utf8(instance.category):
                left_out.append(f"{place}: the name of its class is not UTF-8; rename the folder")
                continue
            category = printable_name(" ".join(instance.category.split()))
            instance = replace(instance, category=category)
            first = found.setdefault((instance.category, instance.name), instance)
            if first is not instance:
                left_out.append(f"{place}: {printable_name(str(first.folder))} has the same class and name")
    return list(found.values()), left_out


def _folders(root: StorePath) -> tuple[set[StorePath], set[StorePath]]:
    """The folders below a root in MVImgNet's layout, and those in the plain one.

    MVImgNet's is class_label/instance_id with images/ or sparse/. The plain one is a folder of pictures for each
    subject.
    """
    if not isinstance(root, Path):
        return _folders_in_store(root)
    marks = (mark for name in _MARKS for mark in visible_entries(root, f"*/*/{name}"))
    plain = (folder for folder in visible_entries(root) if os.path.isdir(folder) and picture_files(folder))
    return {mark.parent for mark in marks if os.path.isdir(mark.parent)}, set(plain)


def _folders_in_store(root: UPath) -> tuple[set[StorePath], set[StorePath]]:
    names = [PurePosixPath(name) for name in names_below(root)]
    marks = {name.parts[:3] for name in names if len(name.parts) > 2 and name.parts[2] in _MARKS}
    pictures = [name for name in names if len(name.parts) == 2 and name.suffix.lower() in PICTURE_SUFFIXES]
    return (
        {root / "/".join(mark[:2]) for mark in marks if not is_hidden(PurePosixPath(*mark))},
        {root / name.parts[0] for name in pictures if not is_hidden(name)},
    )


def _turntables(folders: Iterable[StorePath], names: dict[str, str]) -> Iterator[Instance]:
    for folder in folders:
        label, name = folder.parent.name, printable_name(folder.name)
        yield Instance(folder=folder, category=names.get(label, label), name=name, has_cameras=True)


def _subjects(folders: Iterable[StorePath], root: str, names: dict[str, str]) -> Iterator[Instance]:
    """The class of a subject is its folder's name without a number ("dog2": dog)."""
    for folder in folders:
        category, name = (
            names.get(folder.name, word_of_folder(folder.name).lower()),
            printable_name(f"{root}/{folder.name}"),
        )
        yield Instance(folder=folder, category=category, name=name, has_cameras=False)


def instance_table(instances: Iterable[Instance]) -> pa.Table:
    """Instances for `read_instances`. Their paths are bytes, because names on disk need not be UTF-8."""
    rows = [vars(instance) | {"folder": os.fsencode(str(instance.folder))} for instance in instances]
    return pa.Table.from_pylist(rows)


def read_instances(batch: pa.Table, image_size: int, min_foreground: float) -> pa.Table:
    """The frames (schema `READ`) of the instances of an `instance_table`.

    Raises:
        StageError: A folder is not on this machine.
    """
    rows: list[dict[str, Any]] = []
    for row in batch.to_pylist():
        folder = store_path(os.fsdecode(row.pop("folder")))
        rows += read_instance(Instance(folder=folder, **row), image_size, min_foreground)
    return pa.Table.from_pylist(rows, schema=READ)


def read_instance(instance: Instance, image_size: int, min_foreground: float) -> list[dict[str, Any]]:
    """The frames of one instance and the problems with others; one problem if fewer than two frames are readable.

    Raises:
        StageError: The folder is not on this machine.
    """
    with fetched_folder(instance.folder, _is_read) as folder:
        if not os.path.isdir(folder):
            raise StageError(unseen("multiview.folders", folder))
        return _read_instance(instance, folder, image_size, min_foreground)


def _is_read(name: str) -> bool:
    """Whether a file of an instance is read: of COLMAP's model only the cameras are, and not its large point cloud."""
    return not name.startswith("sparse/") or name.endswith(("/images.bin", "/images.txt"))


def _read_instance(instance: Instance, folder: Path, image_size: int, min_foreground: float) -> list[dict[str, Any]]:
    short_name = printable_name(f"{instance.folder.parent.name}/{instance.folder.name}")
    try:
        frames = list(_frames_of(instance, folder))
    except (ColmapError, OSError) as error:
        return [_problem(f"the instance {short_name}: {error}", is_instance=True)]
    rows, read = [], set[PurePosixPath]()
    for name, camera in frames:
        try:
            path = relative_path(name) if instance.has_cameras else PurePosixPath(name)
            if path in read:
                raise ColmapError("it is registered twice")
            read.add(path)
            rows.append(_read_frame(instance, folder, path, image_size, min_foreground) | camera)
        except (ColmapError, OSError, PictureError) as error:
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
    file = (folder / "images" if instance.has_cameras else folder) / path
    if not os.path.isfile(file):
        raise PictureError("there is no such file")
    check_foreground(folder / "masks", path, min_foreground)
    picture, (width, height) = load_frame(file, image_size)
    return {
        "frame_id": content_id(instance.category, instance.name, printable_name(path)),
        "category": instance.category,
        "instance": instance.name,
        "picture": picture,
        "width": width,
        "height": height,
    }


def _frames_of(instance: Instance, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names of the pictures and cameras; a camera is empty if it is unknown."""
    if not instance.has_cameras:
        yield from ((file.name, {}) for file in picture_files(folder))
        return
    for image in read_images(model_folder(folder)):
        camera = asdict(image)
        yield camera.pop("name"), camera


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
