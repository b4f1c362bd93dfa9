"""A pipeline on a tiny random backbone, and pictures for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from model.adapters.adapter import VisualAdapter
from model.adapters.image_encoder import ImageEncoders
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.backbone import load_backbone
from model.guidance.settings import InferenceSettings
from model.pipeline import RealCustomPipeline
from tests.support.tiny_models import ENCODERS

PROMPTS = ["a cat in a hat", "a toy in a cat"]
CROSS = {"sd": [4], "sdxl": [2]}  # 4 x 4 maps in both: the papers' 16 x 16 and 32 x 32


def subjects(count: int = 2) -> list[Image.Image]:
    values = np.random.default_rng(0).integers(0, 256, (count, 40, 32, 3), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in values]


def as_arguments(**options: Any) -> dict[str, Any]:
    """Arguments of the pipeline: the options that are settings as `settings`, the others as they are."""
    names = {field.name for field in dataclasses.fields(InferenceSettings)}
    settings = {name: value for name, value in options.items() if name in names}
    others = {name: value for name, value in options.items() if name not in names}
    settings.setdefault("mask_steps", min(12, settings.get("steps", 12)))
    return {"settings": InferenceSettings(**settings), **others}


def build(
    folder: Path, scheduler: Any = None, method: type[VisualAdapter] = RealCustomPlusAdapter
) -> RealCustomPipeline:
    """A pipeline with an adapter that changes the picture clearly."""
    encoders = ImageEncoders.from_pretrained(backbone_folder=folder, **ENCODERS)
    backbone = load_backbone(folder)
    torch.manual_seed(0)
    adapter: VisualAdapter = method.from_unet(backbone.unet, encoders.width)
    for linear in adapter.to_v_vision.values():
        assert isinstance(linear, torch.nn.Linear)
        torch.nn.init.normal_(linear.weight)
    return RealCustomPipeline(backbone, adapter, encoders, scheduler)
