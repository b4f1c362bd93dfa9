"""Pictures from the web: their headers are checked first, and what is kept is an upright RGB JPEG."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.pictures.decoding import load_picture
from stages.ingest.resizer import CheckedResizer, Resized
from tests.support.hostile_web import bodies, encode

BODIES = bodies()


def small(picture: Image.Image) -> np.ndarray[Any, Any]:
    """So small that earlier resizing does not matter."""
    return np.asarray(picture.resize((12, 12), Image.Resampling.BOX), np.float64)


@pytest.fixture(scope="module")
def resizer() -> CheckedResizer:
    """img2dataset's with our checks, as the stage makes it."""
    from img2dataset.resizer import Resizer

    settings = {"image_size": 64, "resize_mode": "keep_ratio", "resize_only_if_bigger": True}
    return CheckedResizer(Resizer(**settings, min_image_size=24, max_aspect_ratio=3.0), max_pixels=1_000_000)


@pytest.mark.parametrize("kind", [kind for kind, (reason, _) in BODIES.items() if not reason])
def test_pictures_of_every_kind_come_out_as_our_decoder_sees_them(kind: str, resizer: CheckedResizer) -> None:
    picture, width, height, original_width, original_height, message = resizer(io.BytesIO(BODIES[kind][1]))
    assert message is None
    assert picture is not None
    with Image.open(io.BytesIO(picture)) as image:
        assert (image.mode, image.format, image.size) == ("RGB", "JPEG", (width, height))
        found = small(image)
    expected = load_picture(BODIES[kind][1])
    assert expected.size == (original_width, original_height)
    assert np.abs(found - small(expected)).mean() < 10


@pytest.mark.parametrize("kind", [kind for kind, (reason, _) in BODIES.items() if reason])
def test_refused_pictures_have_a_reason(kind: str, resizer: CheckedResizer) -> None:
    reason, body = BODIES[kind]
    wanted = {"too_small": "image too small", "aspect_ratio": "aspect ratio too large"}.get(reason, reason)
    *nothing, message = resizer(io.BytesIO(body))
    assert nothing == [None] * 5
    assert message is not None
    assert message.startswith(wanted) or (wanted == "decode" and message == "Image decoding error")


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
