"""Resizing of downloaded pictures by img2dataset, after the checks and the decoding of `model.pictures`.

img2dataset decodes with OpenCV, which does not follow our policy for pictures: it turns 16-bit PNGs white, keeps grey
pictures grey, drops the EXIF orientation and colour profiles, and needs gigabytes for a transparent picture. So
img2dataset only decodes the pictures that both decode alike. It gets all others already decoded, as uncompressed BMP
files.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from model.pictures.decoding import PictureError, open_picture

#: img2dataset's result for a picture: the encoded picture, its size, the original size (width, height), and an error
#: message. Either the message is None, or everything else is.
Resized = tuple[bytes | None, int | None, int | None, int | None, int | None, str | None]


class CheckedResizer:
    """Takes the place of img2dataset's Resizer, which is `resize`, in its Downloader."""

    def __init__(self, resize: Callable[[io.BytesIO, Any], Resized], max_pixels: int) -> None:
        self.resize, self.max_pixels = resize, max_pixels

    def __call__(self, stream: io.BytesIO, boxes: Any = None) -> Resized:
        """Resize a picture. Errors are returned and not raised, because img2dataset would lose the row."""
        try:
            return self.resize(io.BytesIO(decodable(stream.getvalue(), self.max_pixels)), boxes)
        except PictureError as error:
            message = error.detail
        except Exception as error:  # OpenCV's, and whatever else a hostile file makes a decoder raise
            message = f"decode: {type(error).__name__}: {error}"
        return None, None, None, None, None, message


def decodable(data: bytes, max_pixels: int) -> bytes:
    """The picture in a form that OpenCV decodes as `model.pictures` does.

    Raises:
        PictureError: The header is not that of an accepted picture, or the picture cannot be decoded.
    """
    with open_picture(data, max_pixels) as opened:
        if opened.is_plain:
            return opened.file.pixels
        buffer = io.BytesIO()
        opened.upright_rgb().save(buffer, format="BMP")
    return buffer.getvalue()
