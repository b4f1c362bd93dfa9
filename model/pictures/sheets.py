"""Pictures of one size beside or below each other in one picture."""

from collections.abc import Sequence

from PIL import Image


def row(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size in a row."""
    width, height = pictures[0].size
    canvas = Image.new("RGB", (width * len(pictures), height))
    for number, picture in enumerate(pictures):
        canvas.paste(picture, (number * width, 0))
    return canvas


def column(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size, one below the other."""
    width, height = pictures[0].size
    canvas = Image.new("RGB", (width, height * len(pictures)))
    for number, picture in enumerate(pictures):
        canvas.paste(picture, (0, number * height))
    return canvas
