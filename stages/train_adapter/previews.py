"""The sample pictures of an adapter's training: which subjects are painted, and the strip of all looks."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from model.pictures.crops import square_crop
from model.pictures.decoding import load_picture
from model.training.adapter_previews import Sample
from stages.data.datasets import PictureStore, read_dataset
from stages.data.schemas import FRAMES

#: So many looks are shown at most, evenly spread over the training.
_SHOWN_LOOKS = 12
_SIDE, _GAP, _HEAD, _FOOT = 192, 8, 28, 22
_PAPER, _INK, _FAINT = "#ffffff", "#1c1e21", "#6b7280"


def choose_samples(frames: PictureStore, prompts: Sequence[str]) -> list[Sample]:
    """One sample a prompt: the categories of `multiview/frames` in turns, each by its first frame."""
    table = read_dataset(frames.folder, FRAMES, ["frame_id", "category"])
    first = table.group_by("category").aggregate([("frame_id", "min")]).sort_by("frame_id_min").to_pylist()
    return [
        Sample(
            reference=frames[row["frame_id_min"]],
            word=row["category"],
            prompt=prompt.replace("{word}", row["category"]),
        )
        for prompt, row in zip(prompts, cycle(first), strict=False)
    ]


def draw_strip(looks: Path, samples: Sequence[Sample], file: Path) -> None:
    """Write one picture of all looks: a row a sample with its prompt below, first the reference, then by step.

    Args:
        looks: Folder of `<step>.png`, at least one, each the samples' pictures below each other.
        samples: As they were painted.
        file: The PNG to write.
    """
    found = sorted(looks.glob("*.png"))
    places = np.unique(np.linspace(0, len(found) - 1, _SHOWN_LOOKS).round().astype(int))
    columns = {"reference": [_reference(sample) for sample in samples]}
    columns |= {f"step {int(found[place].stem)}": _cut(found[place], len(samples)) for place in places}
    width, height = len(columns) * (_SIDE + _GAP) + _GAP, len(samples) * (_SIDE + _FOOT) + _HEAD
    canvas = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, (title, pictures) in enumerate(columns.items()):
        left = _GAP + number * (_SIDE + _GAP)
        draw.text((left + _SIDE // 2, _HEAD // 2), title, _INK, _font(16), anchor="mm")
        for row, picture in enumerate(pictures):
            canvas.paste(picture, (left, _HEAD + row * (_SIDE + _FOOT)))
    for row, sample in enumerate(samples):
        draw.text((_GAP, _HEAD + row * (_SIDE + _FOOT) + _SIDE + 2), sample.prompt, _FAINT, _font(14))
    canvas.save(file, optimize=True)


def _reference(sample: Sample) -> Image.Image:
    picture = load_picture(sample.reference)
    return _resized(square_crop(picture, 0.5, 0.5, min(picture.size)))


def _cut(look: Path, count: int) -> list[Image.Image]:
    """The pictures of a look."""
    with Image.open(BytesIO(look.read_bytes())) as column:
        side = column.height // count
        return [_resized(column.crop((0, row * side, column.width, (row + 1) * side))) for row in range(count)]


def _resized(picture: Image.Image) -> Image.Image:
    """As large as all others: whole pixels when enlarging, smooth when reducing."""
    filtering = Image.Resampling.NEAREST if picture.width < _SIDE else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize((_SIDE, _SIDE), filtering)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
