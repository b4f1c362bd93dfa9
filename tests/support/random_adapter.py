"""An adapter with random weights, visible in the pictures, for tests that need the shapes only."""

from __future__ import annotations

from pathlib import Path

import torch

from model.adapters.adapter import VisualAdapter
from model.adapters.image_encoder import ImageEncoders
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.backbone import load_backbone
from stages.inference import loading_options
from stages.shared_config import BackboneConfig


def write_random_adapter(
    folder: Path, backbone: Path, seed: int = 0, method: type[VisualAdapter] = RealCustomPlusAdapter
) -> Path:
    """Write an adapter for `backbone` and the image encoders of the profile micro."""
    encoders = ImageEncoders.from_pretrained(backbone_folder=backbone, **loading_options(BackboneConfig()))
    torch.manual_seed(seed)
    adapter = method.from_unet(load_backbone(backbone).unet, encoders.width)
    for linear in adapter.to_v_vision.values():
        torch.nn.init.normal_(linear.weight, std=0.1)
    adapter.save_pretrained(folder)
    return folder
