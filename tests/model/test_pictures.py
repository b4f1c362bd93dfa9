from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.pictures import (
    PictureError,
    crop_reference,
    load_picture,
    mask_picture,
    square_crop,
    to_pictures,
    to_png,
    to_tensor,
)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(values, "RGBA").convert(mode)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_plain_pictures_come_back(tmp_path: Path) -> None:
    picture = noise(7, 5)
    (tmp_path / "a.png").write_bytes(to_png(picture))
    for source in (to_png(picture), tmp_path / "a.png", str(tmp_path / "a.png")):
        assert load_picture(source).tobytes() == picture.tobytes()


@pytest.mark.parametrize(("mode", "kind"), [("L", "PNG"), ("P", "PNG"), ("1", "PNG"), ("CMYK", "JPEG"), ("LA", "PNG")])
def test_other_modes_become_rgb(mode: str, kind: str) -> None:
    loaded = load_picture(encoded(noise(6, 4).convert(mode), kind))
    assert (loaded.mode, loaded.size) == ("RGB", (6, 4))


def test_transparency_is_laid_on_white() -> None:
    picture = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    picture.putpixel((1, 0), (10, 20, 30, 0))
    loaded = load_picture(encoded(picture))
    assert [loaded.getpixel((x, 0)) for x in range(2)] == [(10, 20, 30), (255, 255, 255)]
    palette = Image.new("P", (1, 1), 0)
    assert load_picture(encoded(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)


def test_exif_rotation_is_applied() -> None:
    picture = Image.new("RGB", (8, 4), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_picture(encoded(picture, "JPEG", exif=exif)).size == (4, 8)


def test_first_picture_of_a_phone_jpeg() -> None:
    data = encoded(Image.new("RGB", (8, 8), "red"), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert np.asarray(load_picture(data))[4, 4, 0] > 200


def test_refusals(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    whole = encoded(noise(64, 64), "JPEG")
    cases = {
        "not a picture": b"hello",
        "not a picture in": b"",
        "truncated": whole[: len(whole) // 2],
        "truncated or": to_png(noise(64, 64))[:2000],
        "animated": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "8 bits": encoded(Image.fromarray(np.zeros((2, 2), np.uint16))),
    }
    for message, data in cases.items():
        with pytest.raises(PictureError, match=message):
            load_picture(data)
    with pytest.raises(PictureError, match=r"missing\.png cannot be read"):
        load_picture(tmp_path / "missing.png")
    with pytest.raises(PictureError, match="cannot be read"):
        load_picture(tmp_path)


def test_budget_is_checked_on_the_header() -> None:
    data = to_png(noise(20, 10))
    assert load_picture(data, max_pixels=200).size == (20, 10)
    with pytest.raises(PictureError, match="too large: 20 x 10"):
        load_picture(data, max_pixels=199)
    header_only = data[:60]  # no pixel could be decoded
    with pytest.raises(PictureError, match="too large"):
        load_picture(header_only, max_pixels=199)
    huge = bytearray(data)
    huge[16:24] = (60_000).to_bytes(4, "big") * 2  # beyond Pillow's own limit
    with pytest.raises(PictureError, match=r"too large|not a picture"):
        load_picture(bytes(huge))


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


def test_tensors_and_back() -> None:
    pictures = [noise(5, 4), noise(5, 4).transpose(Image.Transpose.ROTATE_180)]
    tensor = to_tensor(pictures)
    assert tensor.shape == (2, 3, 4, 5)
    assert tensor[0, :, 1, 2].mul(255).round().int().tolist() == np.asarray(pictures[0])[1, 2].tolist()
    assert [picture.tobytes() for picture in to_pictures(tensor)] == [picture.tobytes() for picture in pictures]
    assert torch.equal(to_tensor(to_pictures(tensor * 3 - 1)), to_tensor(to_pictures((tensor * 3 - 1).clamp(0, 1))))


def test_mask_picture_enlarges_in_whole_blocks() -> None:
    picture = mask_picture(torch.tensor([[[0.0, 0.2, 0.5]], [[0.0, 1.0, 0.0]]]), 2)
    assert (picture.mode, picture.size) == ("L", (6, 2))
    assert [picture.getpixel((x, 1)) for x in (0, 2, 5)] == [0, 255, 128]
