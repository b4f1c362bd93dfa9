"""The preview pictures of an adapter's training: their subjects, and an overview of all previews."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from model.pictures.crops import square_crop
from model.pictures.decoding import load_picture
from model.training.adapter_previews import PreviewSubject
from stages.data.datasets import PictureStore, read_dataset
from stages.data.schemas import FRAMES

#: The largest number of steps in the overview; they are spread evenly over the training.
_MAX_STEPS = 12
_SIDE, _GAP, _HEAD, _FOOT = 192, 8, 28, 22
_PAPER, _INK, _FAINT = "#ffffff", "#1c1e21", "#6b7280"


def choose_previews(frames: PictureStore, prompts: Sequence[str]) -> list[PreviewSubject]:
    """A subject for each prompt: the categories of `multiview/frames` in turn, each with its first frame."""
    table = read_dataset(frames.folder, FRAMES, ["frame_id", "category"])
    first = table.group_by("category").aggregate([("frame_id", "min")]).sort_by("frame_id_min").to_pylist()
    return [
        PreviewSubject(
            reference=frames[row["frame_id_min"]],
            word=row["category"],
            prompt=prompt.replace("{word}", row["category"]),
        )
        for prompt, row in zip(prompts, cycle(first), strict=False)
    ]


def draw_overview(previews: Path, subjects: Sequence[PreviewSubject], file: Path) -> None:
    """Write one picture of the previews: a row for each subject with its prompt, the reference first, then the steps.

    Args:
        previews: Folder of `<step>.png`, at least one, each with the pictures of all subjects one below the other.
        subjects: Of the previews, in their order.
        file: The PNG to write.
    """
    found = sorted(previews.glob("*.png"))
    shown = np.unique(np.linspace(0, len(found) - 1, _MAX_STEPS).round().astype(int))
    columns = {"reference": [_reference(subject) for subject in subjects]}
    columns |= {f"step {int(found[index].stem)}": _split(found[index], len(subjects)) for index in shown}
    width, height = len(columns) * (_SIDE + _GAP) + _GAP, len(subjects) * (_SIDE + _FOOT) + _HEAD
    canvas = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, (title, pictures) in enumerate(columns.items()):
        left = _GAP + number * (_SIDE + _GAP)
        draw.text((left + _SIDE // 2, _HEAD // 2), title, _INK, _font(16), anchor="mm")
        for row, picture in enumerate(pictures):
            canvas.paste(picture, (left, _HEAD + row * (_SIDE + _FOOT)))
    for row, subject in enumerate(subjects):
        draw.text((_GAP, _HEAD + row * (_SIDE + _FOOT) + _SIDE + 2), subject.prompt, _FAINT, _font(14))
    canvas.save(file, optimize=True)


def _reference(subject: PreviewSubject) -> Image.Image:
    picture = load_picture(subject.reference)
    return _resized(square_crop(picture, 0.5, 0.5, min(picture.size)))


def _split(preview: Path, count: int) -> list[Image.Image]:
    """The pictures of a preview."""
    with Image.open(BytesIO(preview.read_bytes())) as column:
        side = column.height // count
        return [_resized(column.crop((0, row * side, column.width, (row + 1) * side))) for row in range(count)]


def _resized(picture: Image.Image) -> Image.Image:
    """The picture at the overview's size: nearest neighbor when enlarging, smooth when reducing."""
    filtering = Image.Resampling.NEAREST if picture.width < _SIDE else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize((_SIDE, _SIDE), filtering)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
