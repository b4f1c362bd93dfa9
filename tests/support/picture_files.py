"""Encoded pictures for tests."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def encode(pixels: Image.Image, quality: int = 92) -> bytes:
    buffer = io.BytesIO()
    pixels.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def png(pixels: Image.Image) -> bytes:
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG")
    return buffer.getvalue()


def scene(seed: int, side: int = 64) -> Image.Image:
    """A picture with large and small shapes, different for each seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return coarse.resize((side, side), Image.Resampling.BICUBIC)
