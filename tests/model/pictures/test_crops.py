from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.pictures.crops import crop_reference, square_crop


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(values, "RGBA").convert(mode)


fractions = st.floats(0, 1)


@given(st.integers(1, 40), st.integers(1, 40), fractions, fractions)
def test_square_crop_without_resizing_is_a_cut(width: int, height: int, x: float, y: float) -> None:
    picture, side = noise(width, height), min(width, height)
    left, top = round((width - side) * x), round((height - side) * y)
    expected = picture.crop((left, top, left + side, top + side))
    assert square_crop(picture, x, y, side).tobytes() == expected.tobytes()


@given(st.floats(1, 10**0.5), fractions, fractions, st.integers(1, 24))
def test_crop_reference_is_resize_then_crop(ratio: float, x: float, y: float, size: int) -> None:
    picture = noise(30, 30)
    cropped = crop_reference(picture, ratio, x, y, size)
    side = round(size * ratio)
    left, top = round((side - size) * x), round((side - size) * y)
    resized = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))
    assert np.array_equal(np.asarray(cropped), resized[top : top + size, left : left + size])


def test_crop_reference_shows_the_share_of_the_area() -> None:
    ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (200, 1))).convert("RGB")
    shown = np.asarray(crop_reference(ramp, 2.0, 1.0, 0.5, 100))[..., 0]
    assert abs(int(shown.min()) - 100) <= 1
    assert abs(int(shown.max()) - 199) <= 1
    wide = noise(60, 20)
    assert crop_reference(wide, 1.0, 0, 0, 20).tobytes() == wide.crop((20, 0, 40, 20)).tobytes()


def test_crops_outside_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        crop_reference(noise(8, 8), 0.9, 0, 0, 4)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        square_crop(noise(8, 8), 1.1, 0, 4)
