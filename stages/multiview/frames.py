"""From instance folders to rows: pictures with their cameras."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.multiview.colmap import ColmapError, read_images
from stages.schemas import FRAMES, content_id

JPEG_QUALITY = 95
CATEGORY_FILE = "mvimgnet_category.txt"

#: What a task gives back: a frame; or, with a null id, what could not be read, and whether that was a whole instance.
READ = pa.schema(
    [field.with_nullable(True) for field in FRAMES] + [("problem", pa.string()), ("is_instance", pa.bool_())]
)


def category_names(root: Path) -> dict[str, str]:
    """MVImgNet's mapping from class labels, which name the folders, to class names; empty without the file."""
    file = root / CATEGORY_FILE
    if not file.is_file():
        return {}
    pairs = (line.split(",", 1) for line in file.read_text().splitlines() if "," in line)
    return {label.strip(): name.strip().lower() for label, name in pairs}


def find_instances(root: Path) -> list[Path]:
    """The instance folders below `root`, sorted."""
    return sorted(
        {folder.parent for name in ("images", "sparse") for folder in root.glob(f"*/*/{name}") if folder.is_dir()}
    )


def read_instances(batch: pa.Table, names: dict[str, str], image_size: int) -> pa.Table:
    """The frames (schema `READ`) of the instances whose paths are in the column `folder`."""
    rows: list[dict[str, Any]] = []
    for folder in batch["folder"].to_pylist():
        rows += read_instance(Path(folder), names, image_size)
    return pa.Table.from_pylist(rows, schema=READ)


def read_instance(folder: Path, names: dict[str, str], image_size: int) -> list[dict[str, Any]]:
    """One instance's frames, or the one row that says why there are fewer than two."""
    place = f"{folder.parent.name}/{folder.name}"
    try:
        images = read_images(folder / "sparse" / "0")
    except ColmapError as error:
        return [_problem(f"the instance {place}: {error}", is_instance=True)]
    category = names.get(folder.parent.name, folder.parent.name)
    rows = []
    for image in images:
        try:
            picture, (width, height) = load_frame(folder / "images" / Path(image.name).name, image_size)
        except (OSError, UnidentifiedImageError) as error:
            rows.append(_problem(f"the frame {place}/{image.name}: {error}", is_instance=False))
            continue
        rows.append(
            {
                "frame_id": content_id(category, folder.name, image.name),
                "category": category,
                "instance": folder.name,
                "picture": picture,
                "width": width,
                "height": height,
                "rotation": image.rotation,
                "translation": image.translation,
            }
        )
    if sum("frame_id" in row for row in rows) < 2:
        return [_problem(f"the instance {place}: fewer than two of its frames are readable", is_instance=True)]
    return rows


def _problem(text: str, *, is_instance: bool) -> dict[str, Any]:
    return {"problem": text, "is_instance": is_instance}


def load_frame(file: Path, image_size: int) -> tuple[bytes, tuple[int, int]]:
    """The picture as upright RGB JPEG with its shorter side at most `image_size`, and its size (width, height).

    A file that is that already is taken as it is, after one full decoding.
    """
    data = file.read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        is_jpeg = image.format == "JPEG"
        upright = ImageOps.exif_transpose(image)
    if is_jpeg and upright.mode == "RGB" and upright.size == image.size and min(upright.size) <= image_size:
        return data, upright.size
    upright = upright.convert("RGB")
    scale = image_size / min(upright.size)
    if scale < 1:
        size = (max(1, round(upright.width * scale)), max(1, round(upright.height * scale)))
        upright = upright.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    upright.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue(), upright.size
