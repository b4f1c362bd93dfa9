"""A picture that is being painted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from model.guidance.runs import DenoisingRun
from model.painting.request import PaintedPicture, PictureRequest
from model.pictures.provenance import encode_with_provenance, png_with_provenance
from model.pictures.tensors import mask_picture

_MASK_SIDE = 256


@dataclass(frozen=True, eq=False)
class RunningPicture:
    """What was asked for, and its denoising."""

    request: PictureRequest
    run: DenoisingRun

    @property
    def is_finished(self) -> bool:
        """Whether all steps have been taken."""
        return self.run.is_finished

    def encoded(self, image: Any, masks: Tensor | None) -> PaintedPicture:
        """The picture as files.

        Args:
            image: A Pillow picture.
            masks: Of its subjects, (S, G, G').
        """
        request, made, together = self.request, self.request.provenance, self.run.rows_together
        return PaintedPicture(
            picture=encode_with_provenance(image, made, request.output_format, request.output_compression),
            mask=None if masks is None else png_with_provenance(mask_picture(masks, _MASK_SIDE), made),
            timings=dict(self.run.generation.timings),
            batch_size=sum(together) / len(together),
        )
