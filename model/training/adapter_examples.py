"""The pictures of an adapter's training examples: the part of a batch that needs no model.

Fetches, decodes, crops and resizes them by the rows of the plan (RealCustom Sec. 3.2; RealCustom++ Eq. 11). Runs in
processes of its own, so it imports no model.

Legend of shapes: B rows of one worker, H, W height and width of the step's targets, S side of the references.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from model.errors import ModelError
from model.pictures.crops import cover, covering_box, crop_reference
from model.pictures.decoding import PictureError, load_picture
from model.training.target_sizes import PictureSize, time_ids
from model.training.task import Prepared


class PlanRow(NamedTuple):
    """One training example: the columns of the plan that training reads."""

    slot: int
    source: str  # "image_text" or "multiview"
    reference_id: str
    target_id: str
    caption: str
    crop_ratio: float
    crop_x: float
    crop_y: float
    target_crop_x: float
    target_crop_y: float
    height: int
    width: int
    original_height: int
    original_width: int

    @property
    def size(self) -> PictureSize:
        """Of the target."""
        return PictureSize(self.height, self.width)

    @property
    def time_ids(self) -> list[int]:
        """SDXL's size conditioning of the target."""
        original = PictureSize(self.original_height, self.original_width)
        return time_ids(original, self.size, self.target_crop_x, self.target_crop_y)


def share_of(rows: Sequence[PlanRow], rank: int, world: int) -> Sequence[PlanRow]:
    """The rows of a step for one worker.

    Raises:
        ModelError: the rows cannot be divided evenly among the workers.
    """
    if len(rows) % world:
        raise ModelError(f"a step's {len(rows)} examples cannot be divided evenly among {world} workers.")
    share = len(rows) // world
    return rows[rank * share : (rank + 1) * share]


def open_picture(picture: Callable[[str], bytes], picture_id: str) -> Image.Image:
    """Decode a picture of the plan.

    Raises:
        PictureError: it cannot be decoded; names the picture.
    """
    try:
        return load_picture(picture(picture_id))
    except PictureError as error:
        raise PictureError(f"picture {picture_id} of the plan: {error}", error.detail) from error


@dataclass(frozen=True, kw_only=True)
class ExamplePictures:
    """`Feed` of the adapter's training.

    Attributes:
        rows: Step -> the plan's rows of that step, by slot.
        picture: Id of the plan -> encoded picture.
        reference_size: Side of the image encoders' input, pixels.
        tiles: A picture of at least `tiles` times that side gives a reference of `tiles` times that side.
        reference_is_target: Whether the reference is the target's own picture, as in RealCustom (Sec. 3.2: the same
            picture is visual condition and input of the UNet), instead of the plan's reference picture.
        targets: Whether to prepare the targets; not needed if their latents are cached.
    """

    rows: Callable[[int], Sequence[PlanRow]]
    picture: Callable[[str], bytes]
    reference_size: int
    tiles: int
    reference_is_target: bool = False
    targets: bool = True

    def prepare(self, step: int, rank: int, world: int) -> Prepared:
        """The pictures of this rank's rows.

        Returns:
            reference (B, S, S, 3), crops by Eq. 11: bytes, or float32 in [0, 1] if smaller crops were enlarged to the
            size of larger ones; with `targets`, target (B, H, W, 3) bytes, cut from the target pictures, and
            target_is_whole (B,) bool, whether it shows the whole picture.

        Raises:
            PictureError: a picture cannot be decoded; names the picture and the step.
            ModelError: the rows cannot be divided evenly among the workers.
        """
        rows = share_of(self.rows(step), rank, world)
        ids = [row.target_id for row in rows] if self.targets else []
        ids += [self._reference_id(row) for row in rows]
        try:
            pictures = {picture_id: open_picture(self.picture, picture_id) for picture_id in dict.fromkeys(ids)}
        except PictureError as error:
            raise PictureError(f"step {step}: {error}", error.detail) from error
        prepared = {"reference": _stack([self._reference(row, pictures) for row in rows])}
        if not self.targets:
            return prepared
        targets = [pictures[row.target_id] for row in rows]
        return prepared | {
            "target": np.stack([cut_target(picture, row) for row, picture in zip(rows, targets, strict=True)]),
            "target_is_whole": np.array([shows_all(one.size, row) for row, one in zip(rows, targets, strict=True)]),
        }

    def _reference_id(self, row: PlanRow) -> str:
        return row.target_id if self.reference_is_target else row.reference_id

    def _reference(self, row: PlanRow, pictures: Mapping[str, Image.Image]) -> Image.Image:
        """The crop by Eq. 11 of the part that a target of this picture would show."""
        picture = pictures[self._reference_id(row)]
        part = picture.crop(covering_box(picture.size, (row.width, row.height), row.target_crop_x, row.target_crop_y))
        large = self.reference_size * self.tiles
        size = large if min(part.size) >= large else self.reference_size
        return crop_reference(part, row.crop_ratio, row.crop_x, row.crop_y, size)


def cut_target(picture: Image.Image, row: PlanRow) -> NDArray[np.uint8]:
    """The row's target (H, W, 3)."""
    return np.asarray(cover(picture, row.target_crop_x, row.target_crop_y, (row.width, row.height)))


def shows_all(picture: tuple[int, int], row: PlanRow) -> bool:
    """Whether the row's target shows the whole of a picture of this width and height, wherever the crop is."""
    return picture[0] * row.height == picture[1] * row.width


def _stack(crops: Sequence[Image.Image]) -> NDArray[Any]:
    """Square crops as (B, S, S, 3): bytes if all have one size; else the smaller ones are enlarged, in [0, 1]."""
    size = max(crop.width for crop in crops)
    pixels = [np.asarray(crop) for crop in crops]
    if all(crop.width == size for crop in crops):
        return np.stack(pixels)
    return np.stack([_enlarged(one, size) for one in pixels])


def _enlarged(pixels: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """A square (S, S, 3) in [0, 1], enlarged in the same way as in `ImageEncoders`."""
    crop = torch.tensor(pixels).permute(2, 0, 1).float() / 255
    if crop.shape[-1] != size:
        crop = F.interpolate(crop[None], (size, size), mode="bicubic", antialias=True).clamp(0, 1)[0]
    return crop.permute(1, 2, 0).numpy()
