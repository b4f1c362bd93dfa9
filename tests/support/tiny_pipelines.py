"""A pipeline on a tiny random backbone, and pictures for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from model.adapters.adapter import RealCustomPlusAdapter, VisualAdapter
from model.adapters.image_encoder import ImageEncoders
from model.backbone import load_backbone
from model.pipeline import RealCustomPipeline
from tests.support.tiny_models import ENCODERS

PROMPTS = ["a cat in a hat", "a toy in a cat"]
CROSS = {"sd": [4], "sdxl": [2]}  # 4 x 4 maps in both: the papers' 16 x 16 and 32 x 32


def subjects(count: int = 2) -> list[Image.Image]:
    values = np.random.default_rng(0).integers(0, 256, (count, 40, 32, 3), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in values]


def build(
    folder: Path, scheduler: Any = None, method: type[VisualAdapter] = RealCustomPlusAdapter
) -> RealCustomPipeline:
    """A pipeline with an adapter that changes the picture clearly."""
    options = dict(ENCODERS)
    encoders = ImageEncoders.from_pretrained(options.pop("image_encoders"), folder, **options)
    backbone = load_backbone(folder)
    torch.manual_seed(0)
    adapter = method.from_unet(backbone.unet, encoders.width)
    for linear in adapter.to_v_vision.values():
        torch.nn.init.normal_(linear.weight)
    return RealCustomPipeline(backbone, adapter, encoders, scheduler)
