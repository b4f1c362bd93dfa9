"""Pictures of smooth noise, about as large as JPEG files as photographs of the same size."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

_PIXELS_PER_COLOUR = 8


def smooth_noise(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Random colours, one for each 8 x 8 pixels, interpolated."""
    cells = (height // _PIXELS_PER_COLOUR, width // _PIXELS_PER_COLOUR, 3)
    small = Image.fromarray(rng.integers(0, 256, cells, dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def jpeg(picture: Image.Image, quality: int = 90) -> bytes:
    """The encoded picture."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
