"""One sample on its way through the rules, whose picture is decoded when a rule first asks for it."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
_MAX_PIXELS = 64_000_000  # 200 MB once decoded
_GRID = 32
#: What Pillow raises for damaged files.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, TypeError)


class UndecodableError(ValueError):
    """The bytes are no picture; the message says what is wrong with them."""


@dataclass(frozen=True)
class Candidate:
    """A row of `ingest/samples` by column."""

    row: Mapping[str, Any]

    @cached_property
    def picture(self) -> Image.Image:
        """All its pixels, RGB; raises UndecodableError."""
        return decode(self.row["picture"])

    @cached_property
    def grid(self) -> NDArray[np.float64]:
        """The picture's colours, averaged over a grid of 32 x 32: (32, 32, 3), 0 to 255."""
        return np.asarray(self.picture.resize((_GRID, _GRID), Image.Resampling.BOX), dtype=np.float64)


def decode(data: bytes) -> Image.Image:
    """The picture in RGB, of a GIF the first frame.

    Raises:
        UndecodableError: No JPEG, PNG, WebP or GIF; truncated or damaged; of more than 64 million pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the check below is stricter
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise UndecodableError(f"{image.width} x {image.height} pixels are too many to decode")
                return image.convert("RGB")
    except UndecodableError:
        raise
    except (*_DECODING_ERRORS, Image.DecompressionBombError) as error:
        raise UndecodableError(" ".join(str(error).split())[:200] or type(error).__name__) from error
