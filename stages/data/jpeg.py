"""How datasets store pictures: as upright JPEG files with three channels."""

from __future__ import annotations

import io

from PIL import Image

from model.pictures.decoding import exif_orientation, open_picture, upright_rgb

JPEG_QUALITY = 95  # img2dataset's own


def upright_jpeg(data: bytes) -> tuple[bytes, tuple[int, int]]:
    """A picture as the datasets store it, and its size (width, height).

    An upright colour JPEG is returned byte for byte without being decoded.

    Raises:
        PictureError: As `model.pictures.decoding.load_picture`.
    """
    with open_picture(data) as image:
        orientation = exif_orientation(data)
        if is_stored_form(image, orientation):
            return data, image.size
        picture = upright_rgb(image, orientation)
    return encode_jpeg(picture), picture.size


def is_stored_form(image: Image.Image, orientation: int) -> bool:
    """Whether an opened picture is an upright colour JPEG, which can be stored as it is."""
    return image.format == "JPEG" and image.mode == "RGB" and orientation == 1


def encode_jpeg(picture: Image.Image) -> bytes:
    """Encode an RGB picture at the quality of the datasets."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
