"""Decoding of pictures that somebody else has made. Needs no torch, whose import takes a worker seconds."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
MAX_PIXELS = 64_000_000  # 200 MB once decoded
#: What Pillow raises for damaged files.
_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, TypeError)


class UndecodableError(ValueError):
    """The bytes are no picture; the message says what is wrong with them."""


@contextmanager
def decoding(data: bytes) -> Iterator[Image.Image]:
    """Open a picture, of a GIF the first frame; in the block it is decoded.

    Raises:
        UndecodableError: No JPEG, PNG, WebP or GIF; truncated or damaged; of more than 64 million pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the check below is stricter
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UndecodableError(f"{image.width} x {image.height} pixels are too many to decode")
                yield image
    except UndecodableError:
        raise
    except (*_ERRORS, Image.DecompressionBombError) as error:
        raise UndecodableError(" ".join(str(error).split())[:200] or type(error).__name__) from error


def decode(data: bytes) -> Image.Image:
    """All pixels, RGB; raises UndecodableError."""
    with decoding(data) as image:
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")
