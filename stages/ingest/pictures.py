"""From the bytes of a stranger to an upright RGB JPEG of the right size.

The format and the size are read from the header, and refused there, before a decoder is given the bytes. What
img2dataset's Resizer does not get right is done around it: 16-bit PNGs come out white and grey pictures grey, GIFs may
have many frames, transparent pictures take gigabytes, and EXIF rotations are left to a tag that does not survive.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageOps

JPEG_QUALITY = 95  # img2dataset's own
SIGNATURE_BYTES = 16
_ORIENTATION = 0x0112

_TURNED = (5, 6, 7, 8)  # EXIF's orientations that exchange width and height

#: img2dataset's answer for a picture: the encoded picture, its size, the original size (width, height), and what was
#: wrong; either the picture and the sizes or the last is None.
Resized = tuple[bytes | None, int | None, int | None, int | None, int | None, str | None]


class PictureError(Exception):
    """A picture is refused; the message is "reason: detail" as in `stages.ingest.outcomes`."""


def picture_format(data: bytes | bytearray) -> str | None:
    """Pillow's name of the format that a file starts like; None for all but JPEG, PNG, WebP and GIF."""
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return "GIF" if data[:6] in (b"GIF87a", b"GIF89a") else None


def declared_size(data: bytes) -> tuple[int, int]:
    """Width and height as the header has them; no pixel is decoded and no canvas made.

    Raises:
        PictureError: It is no picture of the formats that are accepted, or its header cannot be read.
    """
    kind = picture_format(data)
    if kind is None:
        raise PictureError(f"wrong_type: starts with {data[:8]!r}")
    try:
        if kind == "WEBP":  # Pillow makes the canvas when it opens one
            return _webp_size(data)
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            return image.size
    except Image.DecompressionBombError as error:
        raise PictureError(f"too_many_pixels: {error}") from error
    except (OSError, SyntaxError, ValueError, struct.error, IndexError) as error:
        raise PictureError(f"decode: {kind} header: {error}") from error


def _webp_size(data: bytes) -> tuple[int, int]:
    """See "WebP Container Specification", sections on VP8, VP8L and VP8X."""
    chunk = data[12:16]
    if len(data) < 30 or chunk not in (b"VP8 ", b"VP8L", b"VP8X"):
        raise ValueError(f"first chunk {chunk!r} of {len(data)} bytes")
    if chunk == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


class CheckedResizer:
    """Stands where img2dataset's Downloader expects its Resizer, which `resize` is: a check before, a repair after."""

    def __init__(self, resize: Callable[[io.BytesIO, Any], Resized], max_pixels: int) -> None:
        self.resize, self.max_pixels = resize, max_pixels

    def __call__(self, stream: io.BytesIO, boxes: Any = None) -> Resized:
        """The picture, or why there is none; raises nothing, for img2dataset would lose the row."""
        try:
            return self._checked(stream.getvalue(), boxes)
        except PictureError as error:
            return None, None, None, None, None, str(error)
        except Exception as error:  # what a hostile file makes of a decoder is not foreseeable
            return None, None, None, None, None, f"decode: {type(error).__name__}: {error}"

    def _checked(self, data: bytes, boxes: Any) -> Resized:
        declared = declared_size(data)
        if declared[0] * declared[1] > self.max_pixels:
            raise PictureError(f"too_many_pixels: {declared[0]} x {declared[1]} > {self.max_pixels}")
        orientation = exif_orientation(data)
        plain = as_plain_png(data) if is_unusual(data) else data
        picture, *_, original_width, original_height, message = self.resize(io.BytesIO(plain), boxes)
        if picture is None:
            return None, None, None, None, None, message
        upright, (width, height) = upright_rgb(picture, orientation)
        if orientation in _TURNED:
            original_width, original_height = original_height, original_width
        return upright, width, height, original_width, original_height, None


def exif_orientation(data: bytes) -> int:
    """The orientation that EXIF tells; 1, upright, when it tells none that can be read."""
    if b"Exif" not in data and b"eXIf" not in data and b"EXIF" not in data:
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=[picture_format(data) or ""]) as image:
            return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken tag is no reason to lose a picture, and Pillow raises much for one
        return 1


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
        if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips it
            plain = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
        elif image.has_transparency_data:
            seen = image.convert("RGBA")
            plain = Image.new("RGB", seen.size, "white")
            plain.paste(seen, mask=seen.getchannel("A"))
        else:
            plain = image.convert("RGB")
        buffer = io.BytesIO()
        plain.save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue()


def upright_rgb(picture: bytes, orientation: int) -> tuple[bytes, tuple[int, int]]:
    """The picture as three-channel JPEG in its upright orientation, and its size (width, height).

    Pictures that are upright and coloured come back byte for byte.
    """
    with Image.open(io.BytesIO(picture)) as image:
        if image.mode == "RGB" and not 2 <= orientation <= 8:
            return picture, image.size
        image.getexif()[_ORIENTATION] = orientation  # img2dataset has dropped it
        fixed = ImageOps.exif_transpose(image)
        buffer = io.BytesIO()
        fixed.convert("RGB").save(buffer, format="JPEG", quality=JPEG_QUALITY)
        return buffer.getvalue(), fixed.size
