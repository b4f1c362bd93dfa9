"""Pictures as the datasets store them."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from model.pictures.decoding import load_picture
from stages.data.jpeg import encode_jpeg, upright_jpeg
from tests.support.hostile_web import bodies, encode

BODIES = {kind: body for kind, (reason, body) in bodies().items() if not reason}


def test_upright_colour_jpegs_stay_as_they_are() -> None:
    colour = encode(Image.new("RGB", (9, 8), "red"))
    assert upright_jpeg(colour) == (colour, (9, 8))


@pytest.mark.parametrize("kind", BODIES)
def test_every_picture_becomes_an_upright_colour_jpeg(kind: str) -> None:
    expected = load_picture(BODIES[kind])
    is_stored_form = kind in ("jpeg", "broken_exif")
    assert upright_jpeg(BODIES[kind]) == (BODIES[kind] if is_stored_form else encode_jpeg(expected), expected.size)
    with Image.open(io.BytesIO(encode_jpeg(expected))) as stored:
        assert (stored.format, stored.mode, stored.size) == ("JPEG", "RGB", expected.size)
