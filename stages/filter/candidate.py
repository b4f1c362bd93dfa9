"""One sample on its way through the rules, whose picture is decoded when a rule first asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.pictures import decode

GRID = 32


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
        """See `colour_grid`."""
        return colour_grid(self.picture)


def colour_grid(picture: Image.Image) -> NDArray[np.float64]:
    """The colours of an RGB picture, averaged over a grid of 32 x 32: (32, 32, 3), 0 to 255."""
    # The gap makes large pictures fast: they are halved until they are twice as large as the grid.
    small = picture.resize((GRID, GRID), Image.Resampling.BOX, reducing_gap=2.0)
    return np.asarray(small, dtype=np.float64)
