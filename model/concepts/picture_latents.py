"""The latents of a customization's pictures, with flips, small crops and other sizes.

Legend of shapes: N pictures, B batch, R side of the pictures, h, w latent grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.backbone import Backbone
from model.concepts.concept import ConceptError
from model.concepts.resizing import Resized, place
from model.pictures.decoding import load_picture
from model.pictures.tensors import to_tensor
from model.training.encodings import encode_targets
from model.training.tensor_cache import Cache


class View(NamedTuple):
    """What is seen of a picture."""

    picture: int
    flipped: bool = False
    top: int = 0  # of a square crop, pixels
    left: int = 0
    side: int | None = None  # None: the whole picture
    resized: Resized | None = None  # of the crop, or of the whole picture


class PictureLatents:
    """Pictures of one size, and the latents of their views.

    Args:
        backbone: With its VAE.
        pictures: N encoded pictures, square, R x R.

    Attributes:
        side: R, pixels.

    Raises:
        ConceptError: There is none, or they have different sizes or are not square.
        PictureError: One cannot be decoded.
        BackboneError: R is no multiple of the VAE's scale.
    """

    def __init__(self, backbone: Backbone, pictures: Sequence[bytes]) -> None:
        sizes = {load_picture(picture).size for picture in pictures}
        if not sizes:
            raise ConceptError("there are no pictures to learn from.")
        if any(width != height for width, height in sizes) or len(sizes) > 1:
            raise ConceptError(f"squares of one size are needed, not pictures of the sizes {sorted(sizes)}.")
        self._backbone, self._pictures, self._cache = backbone, pictures, Cache()
        self.side = next(iter(sizes))[0]
        backbone.check_resolution(self.side)

    def draw(self, picture: int, flip: float, crop: float, generator: torch.Generator) -> View:
        """A random view of a picture: mirrored with probability `flip`, of a square crop down to `crop` of its side."""
        flipped, ratio, y, x = torch.rand(4, generator=generator).tolist()
        if crop == 1:
            return View(picture, flipped < flip)
        side = round(self.side * (crop + (1 - crop) * ratio))
        travel = self.side - side
        return View(picture, flipped < flip, round(y * travel), round(x * travel), side)

    def latents(self, views: Sequence[View]) -> Tensor:
        """(B, 4, h, w), on the CPU; those of whole pictures are kept."""

        def encode(wanted: Sequence[View]) -> Tensor:
            return encode_targets(self._backbone, torch.stack([self._square(view) for view in wanted]))

        if any(view.side is not None or view.resized is not None for view in views):
            return encode(views)
        by_key = {str(view): view for view in views}
        # One by one: the rounding depends on the batch, and a resumed training would meet other ones.
        return self._cache.get(list(map(str, views)), lambda keys: (torch.cat([encode([by_key[k]]) for k in keys]),))[0]

    def _square(self, view: View) -> Tensor:
        """(3, R, R) in [0, 1]."""
        square = to_tensor(load_picture(self._pictures[view.picture]))
        if view.side is not None:
            square = square[:, view.top : view.top + view.side, view.left : view.left + view.side]
        side = self.side if view.resized is None else view.resized.side
        if square.shape[-1] != side:
            square = F.interpolate(square[None], (side, side), mode="bicubic", antialias=True)[0].clamp(0, 1)
        if view.flipped:
            square = square.flip(-1)
        return square if view.resized is None else place(square, view.resized, self.side)
