"""Pixels as Pillow decodes them, in 8 bits a channel: a layer of colours, and one of opacity.

Pillow decodes some pictures into less than 8 bits of what they hold, or into more, and it leaves to others what is
transparent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageFile

from model.pictures.containers import PictureFile

_PNG_DEPTH = 24  # the byte of a PNG file that holds the bits of a sample


def png_depth(file: PictureFile) -> int:
    """Bits of a sample of a PNG file."""
    return file.pixels[_PNG_DEPTH]


def decode_layers(image: ImageFile.ImageFile, file: PictureFile) -> tuple[Image.Image, Image.Image | None]:
    """Decode an opened picture, and separate its colours from its alpha channel.

    Returns:
        The colours as they are stored (mode L, RGB or CMYK, 8 bits a channel), and the alpha channel (mode L), which
        is None for an opaque picture.
    """
    box = image.tile[0].extents if file.kind == "GIF" and image.tile else None
    image.load()
    colours, alpha = _layers(image, file)
    if box is not None and box != (0, 0, *image.size):  # the first frame of a GIF need not fill it
        whole = Image.new("L", image.size)
        whole.paste(255 if alpha is None else alpha.crop(box), box)
        alpha = whole
    return colours, alpha


def _layers(image: Image.Image, file: PictureFile) -> tuple[Image.Image, Image.Image | None]:
    key = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion clips
        values = np.asarray(image).astype(np.uint32)
        alpha = None if key is None else Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
        return Image.fromarray((values >> 8).astype(np.uint8)), alpha
    if not image.has_transparency_data:
        return _colours(image), None
    if file.kind == "PNG" and key is not None:
        image.info["transparency"] = _eight_bit_key(image.mode, key, png_depth(file))
    layer = image.convert("RGBA")
    return _colours(image.convert("L") if image.mode in ("L", "LA") else layer), layer.getchannel("A")


def _colours(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _eight_bit_key(mode: str, key: Any, depth: int) -> Any:
    """A PNG's transparent colour as Pillow scales the pixels of grey and RGB, which may have 2, 4, 8 or 16 bits."""
    if mode == "RGB":
        return tuple(value >> 8 if depth == 16 else value for value in key)
    return key * 255 // (2**depth - 1) if mode == "L" else key
