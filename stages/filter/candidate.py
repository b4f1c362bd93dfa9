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

_GRID = 32


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
