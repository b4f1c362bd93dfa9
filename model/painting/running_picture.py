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
    """What was asked for, its denoising, and how many of its subjects' pictures were encoded before and for it."""

    request: PictureRequest
    run: DenoisingRun
    encodings_kept: int
    encodings_made: int

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
        mark = request.mark_generated
        picture = encode_with_provenance(
            image, made, request.output_format, request.output_compression, mark_generated=mark
        )
        drawn = None if masks is None else mask_picture(masks, _MASK_SIDE)
        return PaintedPicture(
            picture=picture,
            mask=None if drawn is None else png_with_provenance(drawn, made, mark_generated=mark),
            timings=dict(self.run.generation.timings),
            batch_size=sum(together) / len(together),
            encodings_kept=self.encodings_kept,
            encodings_made=self.encodings_made,
        )
