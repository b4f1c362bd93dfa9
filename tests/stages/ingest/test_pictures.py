"""Pictures of strangers: what their headers say is checked first, and what is kept is upright and RGB."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from stages.data.pictures import UndecodableError, declared_size, exif_orientation, upright_jpeg
from stages.ingest.pictures import CheckedResizer, Resized
from tests.support.hostile_web import bodies, encode, noise, png

BODIES = bodies()


def small(picture: Image.Image) -> np.ndarray[Any, Any]:
    """So small that it does not matter who has resized it before."""
    return np.asarray(picture.resize((12, 12), Image.Resampling.BOX), np.float64)


@pytest.fixture(scope="module")
def resizer() -> CheckedResizer:
    """img2dataset's with our checks, as the stage makes it."""
    from img2dataset.resizer import Resizer

    settings = {"image_size": 64, "resize_mode": "keep_ratio", "resize_only_if_bigger": True}
    return CheckedResizer(Resizer(**settings, min_image_size=24, max_aspect_ratio=3.0), max_pixels=1_000_000)


@pytest.mark.parametrize("kind", [kind for kind, (reason, _) in BODIES.items() if not reason])
def test_pictures_of_every_colour_mode_come_out_as_rgb(kind: str, resizer: CheckedResizer) -> None:
    picture, width, height, original_width, original_height, message = resizer(io.BytesIO(BODIES[kind][1]))
    assert message is None
    assert picture is not None
    with Image.open(io.BytesIO(picture)) as image:
        assert (image.mode, image.format, image.size) == ("RGB", "JPEG", (width, height))
        found = small(image)
    with Image.open(io.BytesIO(BODIES[kind][1])) as source:
        upright = ImageOps.exif_transpose(source)
        assert upright.size == (original_width, original_height)
        if kind in ("grey_16", "rgb_16"):
            assert np.abs(found - 128).max() < 3
            return
        plain = upright.convert("RGBA")
        expected = Image.alpha_composite(Image.new("RGBA", plain.size, "white"), plain).convert("RGB")
    assert np.abs(found - small(expected)).mean() < (20 if kind == "cmyk" else 10)  # OpenCV mixes inks otherwise


@pytest.mark.parametrize("kind", [kind for kind, (reason, _) in BODIES.items() if reason])
def test_what_is_refused_has_a_reason(kind: str, resizer: CheckedResizer) -> None:
    reason, body = BODIES[kind]
    said = {"too_small": "image too small", "aspect_ratio": "aspect ratio too large"}.get(reason, reason)
    *nothing, message = resizer(io.BytesIO(body))
    assert nothing == [None] * 5
    assert message is not None
    assert message.startswith(said) or (said == "decode" and message == "Image decoding error")


def test_a_bomb_is_refused_before_a_decoder_sees_it() -> None:
    seen: list[Any] = []

    def decode(stream: io.BytesIO, boxes: Any) -> Resized:
        seen.append(stream)
        return None, None, None, None, None, "decoded"

    checked = CheckedResizer(decode, max_pixels=10_000)
    for kind in ("bomb_png", "bomb_gif", "bomb_webp"):
        assert str(checked(io.BytesIO(BODIES[kind][1]))[5]).startswith("too_many_pixels")
    assert checked(io.BytesIO(encode(Image.new("RGB", (101, 100)))))[5] == "too_many_pixels: 101 x 100 > 10000"
    assert not seen
    assert checked(io.BytesIO(encode(Image.new("RGB", (100, 100)))))[5] == "decoded"


@given(body=st.sampled_from([body for _, body in BODIES.values()]), place=st.floats(0, 1), bits=st.integers(1, 255))
def test_a_header_with_a_flipped_byte_has_a_size_or_a_reason(body: bytes, place: float, bits: int) -> None:
    damaged = bytearray(body or b"\0")
    damaged[int(place * (min(len(damaged), 64) - 1))] ^= bits
    try:
        said = f"size: {min(declared_size(bytes(damaged)))}"
    except UndecodableError as error:
        said = str(error)
    assert said.split(":")[0] in ("size", "wrong_type", "decode", "too_many_pixels")


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}])
def test_the_size_of_a_webp_is_read_from_each_of_its_headers(options: dict[str, Any]) -> None:
    assert declared_size(encode(Image.fromarray(noise()), "WEBP", **options)) == (120, 90)


def test_the_size_of_a_png_is_that_of_its_header() -> None:
    assert declared_size(png(300, 200, 8, 2, b"")) == (300, 200)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotations_are_those_of_the_exif_standard(orientation: int) -> None:
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 2, 3), dtype=np.uint8)).resize((32, 48))
    exif = Image.Exif()
    exif[0x0112] = orientation
    tagged = encode(pixels, exif=exif, quality=95)
    assert exif_orientation(tagged) == orientation
    with Image.open(io.BytesIO(tagged)) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture), np.float64)
    data, size = upright_jpeg(encode(pixels, quality=95), orientation)
    with Image.open(io.BytesIO(data)) as fixed:
        assert fixed.size == size == expected.shape[1::-1]
        assert np.abs(np.asarray(fixed, np.float64) - expected).mean() < 3


def test_upright_colour_pictures_are_left_alone_and_grey_ones_get_colours() -> None:
    colour, grey = encode(Image.new("RGB", (9, 8), "red")), encode(Image.new("L", (9, 8), 77))
    assert upright_jpeg(colour, 1) == (colour, (9, 8))
    with Image.open(io.BytesIO(upright_jpeg(grey, 1)[0])) as picture:
        assert picture.mode == "RGB"
