"""One sample on its way through the rules, whose picture is decoded when a rule first asks for it."""

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
    """A row of `ingest/samples` by column."""

    row: Mapping[str, Any]

    @cached_property
    def picture(self) -> Image.Image:
        """RGB, as small as what is asked of it here allows; raises PictureError."""
        return load_reduced(self.row["picture"], 2 * GRID)

    @cached_property
    def grid(self) -> NDArray[np.uint8]:
        """See `colour_grid`."""
        return colour_grid(self.picture)


def colour_grid(picture: Image.Image) -> NDArray[np.uint8]:
    """The colours of an RGB picture, averaged over a grid of 32 x 32: (32, 32, 3)."""
    # The gap makes large pictures fast: first whole pixels are averaged, as many as fit into a cell. What is left to do
    # is a smooth filter's: Pillow's BOX gives a pixel to one cell even if it lies in two, which copies do not survive.
    return np.asarray(picture.resize((GRID, GRID), Image.Resampling.HAMMING, reducing_gap=1.0))
