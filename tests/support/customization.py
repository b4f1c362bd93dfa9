"""A `CustomizationTask` on a tiny backbone, for every method."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from model.backbone import Backbone, load_backbone
from model.concepts.contextualizer import Contextualizer
from model.concepts.customization_loss import CustomizationModule
from model.concepts.customization_settings import ConceptSubject, CustomizationSettings
from model.concepts.customization_task import CustomizationTask
from tests.support.tiny_models import RESOLUTION

#: What is trained.
METHODS: dict[str, dict[str, Any]] = {
    "textual_inversion": {"method": "textual_inversion"},
    "several_vectors": {"method": "textual_inversion", "vectors": 3},
    "xti": {"method": "xti"},
    "dreambooth": {"method": "dreambooth"},
    "whole_models": {"method": "dreambooth", "full": True},
    "custom_diffusion": {"method": "custom_diffusion", "vectors": 2, "resize": True},
}


def picture(seed: int, side: int = RESOLUTION) -> bytes:
    """A PNG file of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make_subject(placeholder: str = "[v]", first: int = 0, **changes: Any) -> ConceptSubject:
    """Three pictures and two class pictures."""
    subject = ConceptSubject(
        name="tom",
        word="cat",
        placeholder=placeholder,
        pictures=tuple(picture(first + number) for number in range(3)),
        class_pictures=tuple(picture(100 + first + number) for number in range(2)),
    )
    return dataclasses.replace(subject, **changes)


def make_task(
    folder: Path, contextualizer: Path | None = None, subjects: tuple[ConceptSubject, ...] = (), **settings: Any
) -> CustomizationTask:
    """With the MLM loss if there is a contextualizer."""
    if contextualizer is not None:
        settings = {"mlm": True, "mlm_weight": 0.1, "mask_rate": 0.5, **settings}
    subjects = subjects or (make_subject("sks" if settings["method"] == "dreambooth" else "[v]"),)
    return CustomizationTask(
        backbone=str(folder),
        subjects=subjects,
        settings=CustomizationSettings(batch_size=2, **settings),
        seed=1,
        contextualizer=None if contextualizer is None else str(contextualizer),
        rich_prompts=tuple(f"a {subject.placeholder} cat in b c d" for subject in subjects),
    )


def write_contextualizer(backbone_folder: Path, folder: Path) -> Path:
    """psi and p_mask with random weights."""
    torch.manual_seed(0)
    encoder = load_backbone(backbone_folder).text_encoders[0]
    contextualizer = Contextualizer(16, encoder.config.vocab_size, num_layers=1, num_heads=2)
    torch.nn.init.normal_(contextualizer.mask_embedding)
    contextualizer.save_pretrained(folder)
    return folder


def train(task: CustomizationTask, steps: int = 3, rate: float = 1e-2) -> CustomizationModule:
    """Plain steps of AdamW."""
    module, rates = task.module(), task.module().rates()
    groups = [
        {"params": [weight], "lr": rate * rates.get(name, 1.0)}
        for name, weight in module.named_parameters()
        if weight.requires_grad
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    for step in range(steps):
        optimizer.zero_grad()
        module(task.batch(step, 0, 1))["loss"].backward()
        optimizer.step()
    return module


def backbone_of(module: CustomizationModule) -> Backbone:
    """The backbone in which a module learns."""
    return module.frozen[0]


@torch.no_grad()
def predict(backbone: Backbone, prompt: str) -> torch.Tensor:
    """The UNet's prediction for a prompt."""
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return backbone.predict(latents, torch.tensor([500]), backbone.encode_prompt([prompt]))
