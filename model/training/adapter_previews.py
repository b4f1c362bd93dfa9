"""Preview pictures of an adapter during its training: always the same subjects, prompts and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from model.guidance.settings import InferenceSettings
from model.pictures.decoding import load_picture
from model.pipeline import RealCustomPipeline
from model.training.adapter_loss import AdapterModule
from model.training.precision import half_precision


@dataclass(frozen=True, kw_only=True)
class PreviewSubject:
    """The subject and the prompt of one preview picture.

    Attributes:
        reference: The subject, an encoded picture.
        word: The subject's word in the prompt.
        prompt: Contains the word.
    """

    reference: bytes
    word: str
    prompt: str


def generate_previews(
    module: AdapterModule,
    subjects: Sequence[PreviewSubject],
    settings: InferenceSettings,
    resolution: int,
    half: torch.dtype | None = None,
) -> list[Image.Image]:
    """One picture of each subject, with its mask; subject k has seed k.

    Training is not affected: no random number of the process is drawn, and the adapter's mode and attention processors
    stay the same.

    Args:
        module: in training.
        subjects: to generate pictures of.
        settings: of the pipeline.
        resolution: side of the pictures, pixels.
        half: dtype of the frozen models' linear and convolution layers (`halve_products`); None: fp32.

    Raises:
        GenerationError: the pictures became NaN or infinite, or a subject or a setting does not fit.
    """
    backbone, training = module.frozen.backbone, module.adapter.training
    pipeline = RealCustomPipeline(backbone, module.adapter, module.frozen.encoders)
    try:
        with half_precision(backbone.device, half):
            return pipeline(
                [subject.prompt for subject in subjects],
                [load_picture(subject.reference) for subject in subjects],
                [subject.word for subject in subjects],
                settings=settings,
                height=resolution,
                width=resolution,
            ).images
    finally:
        module.adapter.train(training)
