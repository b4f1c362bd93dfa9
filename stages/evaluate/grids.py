"""Pictures of the report: data URIs for the page, and grids as files of their own."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from model.pictures.decoding import load_picture, open_picture, to_png

SHOWN_SIDE = 256  # pixels; larger pictures are reduced
_PAPER, _INK, _FAINT = "#ffffff", "#1c1e21", "#6b7280"


def data_uri(picture: bytes) -> str:
    """A picture for the page: a small one unchanged (the browser enlarges its pixels), a large one reduced.

    Shown is what the models see: a picture that a browser might show in another way is converted.
    """
    with open_picture(picture) as opened:
        if max(opened.image.size) <= SHOWN_SIDE and opened.is_plain:
            return _uri(opened.file.kind, picture)
        image = opened.upright_rgb()
    if max(image.size) <= SHOWN_SIDE:
        return _uri("PNG", to_png(image))
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return _uri("JPEG", buffer.getvalue())


def _uri(kind: str, picture: bytes) -> str:
    return f"data:image/{kind.lower()};base64,{base64.b64encode(picture).decode()}"


def resize_square(picture: bytes, side: int) -> Image.Image:
    """A square RGB picture of `side` pixels; enlarging repeats pixels, reducing averages them."""
    image = load_picture(picture)
    small = max(image.size) < side
    return image.resize((side, side), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)


def picture_grid(
    columns: Sequence[Mapping[str, bytes]], captions: Sequence[str], rows: Mapping[str, str], path: Path
) -> None:
    """Write a grid of pictures with labels.

    Args:
        columns: The pictures of each column by row key.
        captions: The text below each column.
        rows: Row key -> label, from top to bottom.
        path: The PNG to write.
    """
    side, gap, left, bottom = 192, 10, 150, 66
    width, height = left + len(columns) * (side + gap), gap + len(rows) * (side + gap) + bottom
    canvas = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for row, (key, label) in enumerate(rows.items()):
        top = gap + row * (side + gap)
        draw.text((left - gap, top + side // 2), label, _INK, _font(20), anchor="rm", align="right")
        for column, pictures in enumerate(columns):
            canvas.paste(resize_square(pictures[key], side), (left + column * (side + gap), top))
    for column, caption in enumerate(captions):
        position = (left + column * (side + gap) + side // 2, height - bottom + 2)
        draw.multiline_text(position, _wrap(caption, 24), _FAINT, _font(15), anchor="ma", align="center")
    canvas.save(path, optimize=True)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _wrap(text: str, width: int) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines[:3])
