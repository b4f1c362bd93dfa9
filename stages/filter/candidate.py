"""A sample that the rules are applied to. Its picture is decoded when a rule first needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.pictures.decoding import load_reduced

GRID = 32


@dataclass(frozen=True)
class Candidate:
    """A row of `ingest/samples`, by column name."""

    row: Mapping[str, Any]

    @cached_property
    def picture(self) -> Image.Image:
        """The picture in RGB, in the smallest size that the rules need; raises PictureError."""
        return load_reduced(self.row["picture"], 2 * GRID)

    @cached_property
    def grid(self) -> NDArray[np.uint8]:
        """The picture's `colour_grid`."""
        return colour_grid(self.picture)


def colour_grid(picture: Image.Image) -> NDArray[np.uint8]:
    """The colours of an RGB picture, averaged over a grid of 32 x 32: (32, 32, 3)."""
    # `reducing_gap` makes large pictures fast: Pillow first averages whole pixels, as many as fit into a cell. A smooth
    # filter does the rest. BOX would assign a pixel that lies in two cells to one of them, and change resized copies.
    return np.asarray(picture.resize((GRID, GRID), Image.Resampling.HAMMING, reducing_gap=1.0))
