"""Decoding of pictures that somebody else has made. Needs no torch, whose import takes a worker seconds.

The format and the size are read from the header, and refused there, before a decoder is given the bytes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 64_000_000  # 200 MB once decoded
JPEG_QUALITY = 95  # img2dataset's own
SIGNATURE_BYTES = 16
_ORIENTATION = 0x0112
_EXIF_MARKS = {"JPEG": b"Exif", "PNG": b"eXIf", "WEBP": b"EXIF"}


class UndecodableError(ValueError):
    """The bytes are no picture that is accepted.

    The message says what is wrong with them, as "reason: detail" with the reason wrong_type, too_many_pixels or decode.
    """


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
        UndecodableError: It is no picture of the formats that are accepted, or its header cannot be read.
    """
    return _declared(data)[0]


def _declared(data: bytes) -> tuple[tuple[int, int], str]:
    """Size, and Pillow's mode; for a WebP, whose mode is not in the first header, ""."""
    kind = _accepted_format(data)
    if kind == "WEBP":  # Pillow makes the canvas when it opens one
        with _reading_header(kind):
            return _webp_size(data), ""
    with _reading_header(kind), Image.open(io.BytesIO(data), formats=[kind]) as image:
        return image.size, image.mode


def _opened(data: bytes) -> Image.Image:
    """The picture before it is decoded; raises UndecodableError for its header."""
    kind = _accepted_format(data)
    if kind == "WEBP":
        check_header(data)
    with _reading_header(kind):
        image = Image.open(io.BytesIO(data), formats=[kind])
    _check_pixels(*image.size, MAX_PIXELS)
    return image


def _accepted_format(data: bytes) -> str:
    kind = picture_format(data)
    if kind is None:
        raise UndecodableError(f"wrong_type: starts with {data[:8]!r}")
    return kind


@contextmanager
def _reading_header(kind: str) -> Iterator[None]:
    """What a decoder says of a header, as UndecodableError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_check_pixels` is stricter
            yield
    except Image.DecompressionBombError as error:
        raise UndecodableError(f"too_many_pixels: {error}") from error
    except Exception as error:  # what a hostile file makes of a decoder is not foreseeable
        raise UndecodableError(f"decode: {kind} header: {_words(error)}") from error


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


def check_header(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    """Refuse what is no picture, or one of too many pixels; returns Pillow's mode, "" for a WebP.

    Raises:
        UndecodableError: As `declared_size`; or there are too many pixels.
    """
    size, mode = _declared(data)
    _check_pixels(*size, max_pixels)
    return mode


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UndecodableError(f"too_many_pixels: {width} x {height} > {max_pixels}")


@contextmanager
def decoding(data: bytes) -> Iterator[Image.Image]:
    """Open a picture, of a GIF the first frame; in the block it is decoded.

    Raises:
        UndecodableError: No JPEG, PNG, WebP or GIF; truncated or damaged; of more than 64 million pixels.
    """
    try:
        with _opened(data) as image:
            yield image
    except UndecodableError:
        raise
    except Exception as error:  # as in `_opened`
        raise UndecodableError(f"decode: {_words(error)}") from error


def decode(data: bytes) -> Image.Image:
    """All pixels, RGB; raises UndecodableError."""
    with decoding(data) as image:
        return as_rgb(image)


def decode_small(data: bytes, least: int) -> Image.Image:
    """The picture at a half, a quarter or an eighth of its size, RGB, but with sides of `least` pixels or more.

    A JPEG is read to its end and all its coefficients are decoded, so that it is damaged here if it is for `decode`;
    it is the transform of most of them to pixels that is left out. Other formats come in full size.

    Raises:
        UndecodableError: As `decode`.
    """
    with decoding(data) as image:
        image.draft("RGB", (least, least))
        return as_rgb(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """All pixels at 8 bits a channel, on white where the picture is transparent."""
    image.load()
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips it
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        plain = Image.new("RGB", seen.size, "white")
        plain.paste(seen, mask=seen.getchannel("A"))
        return plain
    return image if image.mode == "RGB" else image.convert("RGB")


def exif_orientation(data: bytes) -> int:
    """The orientation that EXIF tells; 1, upright, when it tells none that can be read."""
    kind = picture_format(data) or ""
    if kind not in _EXIF_MARKS or _EXIF_MARKS[kind] not in data:  # far cheaper than to look properly
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken tag is no reason to lose a picture, and Pillow raises much for one
        return 1


def upright_jpeg(data: bytes, orientation: int) -> tuple[bytes, tuple[int, int]]:
    """The picture as three-channel JPEG, turned as EXIF's `orientation` says, and its size (width, height).

    An upright coloured JPEG comes back byte for byte, without being decoded.

    Raises:
        UndecodableError: As `decoding`.
    """
    with decoding(data) as image:
        if image.format == "JPEG" and image.mode == "RGB" and not 2 <= orientation <= 8:
            return data, image.size
        plain = as_rgb(image).copy()
        plain.info.clear()  # what else EXIF says may be broken
        plain.getexif()[_ORIENTATION] = orientation
        upright = ImageOps.exif_transpose(plain)
        buffer = io.BytesIO()
        upright.save(buffer, format="JPEG", quality=JPEG_QUALITY)
        return buffer.getvalue(), upright.size


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
