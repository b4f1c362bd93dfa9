"""A sheet of pictures with a label before each row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont


def write_sheet(rows: Sequence[tuple[str, Image.Image]], file: Path, label_width: int, colours: int = 128) -> None:
    """Write rows of one height below each other, in a palette.

    Args:
        rows: Label and pictures beside each other.
        file: A PNG file.
        label_width: Pixels.
        colours: Of the palette, at most 256.
    """
    height, width = rows[0][1].height, max(row.width for _, row in rows)
    sheet = Image.new("RGB", (label_width + width, height * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (label, row) in enumerate(rows):
        draw.text((4, number * height + height // 2), label, "black", ImageFont.load_default(11), anchor="lm")
        sheet.paste(row, (label_width, number * height))
    sheet.quantize(colours, dither=Image.Dither.NONE).save(file, optimize=True)
