"""Custom Diffusion's augmentation: pictures are made smaller or larger at random (Kumari et al. 2023).

The numbers are those of the authors' code. A smaller picture lies on a grey square, whose grey has no loss; of a larger
one a part is seen. The words for the size are in `training_prompts.py`.

Legend of shapes: R side of the square, h, w latent grid.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.concepts.training_prompts import LARGE_WORDS, SMALL_WORDS

_SMALLER = 0.66  # probability
_SMALLEST_PART = 3  # R / 3 is the smallest side
_LARGER = (1.2, 1.4)  # sides as multiples of R
_SMALL = 0.6  # below this share of R the words say so
_GREY = 0.5
_MARGIN = 1  # latent positions at the picture's edges, which the VAE mixes with the grey


class Resized(NamedTuple):
    """A resized picture in its square.

    Attributes:
        side: Of the picture, pixels.
        top: Of its upper edge in the square, pixels; at most 0 for a larger one.
        left: The same of its left edge.
        words: For the size; "" for one that is neither small nor large.
    """

    side: int
    top: int
    left: int
    words: str


def draw_resized(square: int, latent_scale: int, generator: torch.Generator) -> Resized:
    """A random size and place.

    Args:
        square: R, pixels.
        latent_scale: Width of a latent position, pixels. The loss mask of a picture has one position or more.
        generator: Source of randomness; always the same number of values is drawn.
    """
    kind, size, y, x, word = torch.rand(5, generator=generator).tolist()
    if kind < _SMALLER:
        smallest = max(square // _SMALLEST_PART, (2 * _MARGIN + 1) * latent_scale)
        side = _between(min(smallest, square), square, size)
    else:
        smallest, largest = (int(factor * square) for factor in _LARGER)
        side = _between(smallest, largest, size)
    travel = square - side  # below 0 for a larger one
    top, left = (_between(min(travel, 0), max(travel, 0), position) for position in (y, x))
    listed = LARGE_WORDS if side > square else SMALL_WORDS if side < _SMALL * square else ("",)
    return Resized(side, top, left, listed[_between(0, len(listed) - 1, word)])


def place(picture: Tensor, resized: Resized, square: int) -> Tensor:
    """(3, side, side) in [0, 1] -> (3, R, R): a smaller picture on grey, or the part of a larger one that is seen."""
    right, bottom = square - resized.left - resized.side, square - resized.top - resized.side
    return F.pad(picture, (resized.left, right, resized.top, bottom), value=_GREY)  # below 0: cut off


def loss_mask(resized: Resized, square: int, latent_scale: int) -> Tensor:
    """(1, h, w): 1 where the loss counts, which is inside the picture."""
    grid = square // latent_scale
    if resized.side >= square:
        return torch.ones(1, grid, grid)
    rows, columns = (
        slice(start // latent_scale + _MARGIN, (start + resized.side) // latent_scale - _MARGIN)
        for start in (resized.top, resized.left)
    )
    mask = torch.zeros(1, grid, grid)
    mask[:, rows, columns] = 1
    return mask


def _between(first: int, last: int, share: float) -> int:
    """The whole number of first..last, all equally likely, at a share in [0, 1)."""
    return first + int(share * (last - first + 1))
