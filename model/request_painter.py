"""Requests to paint with encoded pictures: a subject's file in, PNGs of the picture and its mask out."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from model.guidance.settings import InferenceSettings
from model.pictures.decoding import load_picture
from model.pictures.provenance import Provenance, png_with_provenance
from model.pictures.tensors import mask_picture
from model.pipeline import RealCustomPipeline

_MASK_SIDE = 256


@dataclass(frozen=True, kw_only=True)
class PreparedRequest:
    """A valid request: its picture is decoded, and its word is in its prompt.

    Attributes:
        cut_off: The end of the prompt, which the text encoder does not read; "" if it reads all.
    """

    subject: Image.Image
    provenance: Provenance
    cut_off: str = ""


@dataclass(frozen=True, kw_only=True)
class RequestPainter:
    """Paints requests.

    Attributes:
        pipeline: With an adapter.
        settings: The defaults of the inference.
        title: How painted pictures name the model in their metadata; None for one without a name.
        adapter: The adapter's fingerprint.
    """

    pipeline: RealCustomPipeline
    settings: InferenceSettings
    title: str | None
    adapter: str

    def prepare(self, subject: bytes, word: str, prompt: str, seed: int = 0, **options: Any) -> PreparedRequest:
        """Validate a request, so that `paint` does not fail because of it.

        Args:
            subject: An encoded picture.
            word: A word or phrase of the prompt, which the subject stands for.
            prompt: What to paint.
            seed: Of the initial noise.
            **options: Replace the default settings.

        Raises:
            ValueError: The word is not in the prompt (lists its words), or the subject cannot be read as a picture.
        """
        self.pipeline.backbone.token_positions(prompt, word)
        return PreparedRequest(
            subject=load_picture(subject),
            provenance=Provenance(
                prompt=prompt,
                word=word,
                seed=seed,
                subject_sha256=hashlib.sha256(subject).hexdigest(),
                model=self.title,
                adapter=self.adapter,
                settings=self._inference_settings(**options),
            ),
            cut_off=self.pipeline.backbone.cut_off(prompt),
        )

    def _inference_settings(self, steps: int | None = None, **options: Any) -> InferenceSettings:
        return replace(self.settings if steps is None else self.settings.with_steps(steps), **options)

    def paint(self, requests: Sequence[PreparedRequest]) -> list[tuple[bytes, bytes]]:
        """The picture and the mask of each request, as PNG; requests with the same settings are painted together."""
        groups: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[repr(request.provenance.settings)].append(number)
        painted: dict[int, tuple[bytes, bytes]] = {}
        for numbers in groups.values():
            painted |= zip(numbers, self._paint_group([requests[number] for number in numbers]), strict=True)
        return [painted[number] for number in range(len(requests))]

    def _paint_group(self, requests: Sequence[PreparedRequest]) -> list[tuple[bytes, bytes]]:
        made = [request.provenance for request in requests]
        output = self.pipeline(
            [one.prompt for one in made],
            [request.subject for request in requests],
            [one.word for one in made],
            seeds=[one.seed for one in made],
            settings=made[0].settings,
        )
        return [
            (png_with_provenance(image, one), png_with_provenance(mask_picture(masks[-1], _MASK_SIDE), one))
            for image, masks, one in zip(output.images, output.masks, made, strict=True)
        ]
