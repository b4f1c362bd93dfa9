"""How datasets store pictures: as upright JPEG files with three channels, in sRGB."""

from __future__ import annotations

import io

from PIL import Image

from model.pictures.decoding import OpenedPicture, open_picture

JPEG_QUALITY = 95  # img2dataset's own


def upright_jpeg(data: bytes) -> tuple[bytes, tuple[int, int]]:
    """A picture as the datasets store it, and its size (width, height).

    A file that already is in this form is returned byte for byte without being decoded.

    Raises:
        PictureError: As `model.pictures.decoding.load_picture`.
    """
    with open_picture(data) as opened:
        if is_stored_form(opened):
            return data, opened.image.size
        picture = opened.upright_rgb()
    return encode_jpeg(picture), picture.size


def is_stored_form(opened: OpenedPicture) -> bool:
    """Whether a picture's file is an upright JPEG in sRGB, which can be stored as it is."""
    return opened.file.kind == "JPEG" and opened.is_plain


def encode_jpeg(picture: Image.Image) -> bytes:
    """Encode an RGB picture at the quality of the datasets."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
