"""Pictures that show how far an adapter is while it trains: the same subjects, prompts and noise at every look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from model.pictures.decoding import load_picture
from model.pipeline import RealCustomPipeline
from model.training.adapter_loss import AdapterModule


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture to paint at every look.

    Attributes:
        reference: The subject, an encoded picture.
        word: What the prompt calls it.
        prompt: With the word in it.
    """

    reference: bytes
    word: str
    prompt: str


def paint_samples(
    module: AdapterModule, samples: Sequence[Sample], half: torch.dtype | None = None
) -> list[Image.Image]:
    """One picture a sample, with its mask and with `RealCustomPipeline`'s own settings.

    Sample k has seed k. Training goes on afterwards as if nothing had been painted: no random number of the process is
    drawn, and the modes and attention processors are those from before.

    Args:
        module: in training.
        samples: what to paint.
        half: dtype of the UNet's products (`halve_products`); None: as its other weights.

    Raises:
        GenerationError: the pictures became NaN or infinite.
        WordNotInPromptError: a prompt lacks its word.
    """
    backbone, training = module.frozen.backbone, module.adapter.training
    pipeline = RealCustomPipeline(backbone, module.adapter, module.frozen.encoders)
    try:
        with torch.autocast(backbone.device.type, half, enabled=half is not None):
            return pipeline(
                [sample.prompt for sample in samples],
                [load_picture(sample.reference) for sample in samples],
                [sample.word for sample in samples],
            ).images
    finally:
        module.adapter.train(training)


def column(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size below each other."""
    width, height = pictures[0].size
    canvas = Image.new("RGB", (width, height * len(pictures)))
    for number, picture in enumerate(pictures):
        canvas.paste(picture, (0, number * height))
    return canvas
