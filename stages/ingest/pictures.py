"""From the bytes of a stranger to an upright RGB JPEG of the right size.

What img2dataset's Resizer does not get right is done around it: 16-bit PNGs come out white and grey pictures grey, GIFs
may have many frames, transparent pictures take gigabytes, and EXIF rotations are left to a tag that does not survive.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from PIL import Image

from stages.data.pictures import UndecodableError, as_rgb, check_header, exif_orientation, picture_format, upright_jpeg

_TURNED = (5, 6, 7, 8)  # EXIF's orientations that exchange width and height

#: img2dataset's answer for a picture: the encoded picture, its size, the original size (width, height), and what was
#: wrong; either the picture and the sizes or the last is None.
Resized = tuple[bytes | None, int | None, int | None, int | None, int | None, str | None]


class CheckedResizer:
    """Stands where img2dataset's Downloader expects its Resizer, which `resize` is: a check before, a repair after."""

    def __init__(self, resize: Callable[[io.BytesIO, Any], Resized], max_pixels: int) -> None:
        self.resize, self.max_pixels = resize, max_pixels

    def __call__(self, stream: io.BytesIO, boxes: Any = None) -> Resized:
        """The picture, or why there is none; raises nothing, for img2dataset would lose the row."""
        try:
            return self._checked(stream.getvalue(), boxes)
        except UndecodableError as error:
            return None, None, None, None, None, str(error)
        except Exception as error:  # OpenCV's, and whatever else a hostile file makes of a decoder
            return None, None, None, None, None, f"decode: {type(error).__name__}: {error}"

    def _checked(self, data: bytes, boxes: Any) -> Resized:
        mode = check_header(data, self.max_pixels)
        orientation = exif_orientation(data)
        plain = as_plain_png(data) if is_unusual(data) else data
        resized = self.resize(io.BytesIO(plain), boxes)
        picture, *_, original_width, original_height, message = resized
        if picture is None:
            return None, None, None, None, None, message
        if mode == "RGB" and orientation == 1 and plain is data:
            return resized  # img2dataset has made an upright JPEG with three channels of it
        upright, (width, height) = upright_jpeg(picture, orientation)  # img2dataset has dropped the orientation
        if orientation in _TURNED:
            original_width, original_height = original_height, original_width
        return upright, width, height, original_width, original_height, None


def is_unusual(data: bytes) -> bool:
    """Whether img2dataset's decoder would make something else of it, or need gigabytes: a GIF, a PNG of 16 bits a
    channel, a transparent picture (which it lays on white in double precision).
    """
    kind = picture_format(data)
    if kind == "JPEG":
        return False
    if kind == "GIF" or (kind == "PNG" and data[24] == 16):
        return True
    with Image.open(io.BytesIO(data), formats=[kind or ""]) as image:
        return image.has_transparency_data


def as_plain_png(data: bytes) -> bytes:
    """The first frame at 8 bits a channel, on white where it is transparent."""
    with Image.open(io.BytesIO(data)) as image:
        buffer = io.BytesIO()
        as_rgb(image).save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue()
