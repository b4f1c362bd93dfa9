"""Small random weights in the forms that RealCustom++'s authors released, and image encoders for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from model.adapters.adapter import cross_attention_widths
from model.adapters.released_weights import convert_released

PROJECTION = "encoder_hidden_states_vision_projection"
IMAGE_WIDTH = 128  # of both encoders together: two heads of width 64
REFERENCE_SIZE = 28  # 2 x 2 patches
ENCODER_NAMES = ("siglip", "dino_with_registers")
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def released_state(unet: UNet2DConditionModel, shallow: bool, seed: int = 1) -> dict[str, Tensor]:
    """A random file of the first form, or with shallow features of the second."""
    tokens = unet.config.cross_attention_dim
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, width in cross_attention_widths(unet).items():
        shapes[f"{layer}.to_k_vision.weight"] = shapes[f"{layer}.to_v_vision.weight"] = (width, tokens)
    for number in ("", "2") if shallow else ("",):
        attention, mlp = f"{PROJECTION}.min_attention{number}", f"{PROJECTION}.projector{number}"
        for name in ("to_q", "to_k", "to_v"):
            shapes[f"{attention}.{name}.weight"] = (IMAGE_WIDTH, IMAGE_WIDTH)
        norms = {f"{attention}.norm1": IMAGE_WIDTH, f"{attention}.norm2": IMAGE_WIDTH, f"{mlp}.5": tokens}
        for name, width in norms.items():
            shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)
        for index, (before, after) in {0: (IMAGE_WIDTH, 512), 2: (512, tokens), 4: (tokens, tokens)}.items():
            shapes[f"{mlp}.{index}.weight"], shapes[f"{mlp}.{index}.bias"] = (after, before), (after,)
    shapes[f"{PROJECTION}.projector_base.weight"] = (tokens, IMAGE_WIDTH)
    shapes[f"{PROJECTION}.projector_base.bias"] = (tokens,)
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def write_released_adapter(folder: Path, unet: UNet2DConditionModel, *, shallow: bool = False) -> Path:
    """Import such weights into a folder."""
    convert_released(released_state(unet, shallow), unet).save_pretrained(folder)
    return folder


def write_release_encoders(folder: Path) -> Path:
    """SigLIP and DINOv2 with registers as deep as the true ones, and narrow, as subfolders of a backbone's folder."""
    torch.manual_seed(3)
    narrow: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 2, "patch_size": 14}
    siglip = SiglipVisionConfig(intermediate_size=64, num_hidden_layers=27, image_size=REFERENCE_SIZE, **narrow)
    dino = Dinov2WithRegistersConfig(mlp_ratio=1, num_hidden_layers=24, image_size=42, layerscale_value=0.5, **narrow)
    models = (SiglipVisionModel(siglip), Dinov2WithRegistersModel(dino))
    for name, model in zip(ENCODER_NAMES, models, strict=True):
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
        model.eval().save_pretrained(folder / name)
    SiglipImageProcessorPil().save_pretrained(folder / ENCODER_NAMES[0])
    SiglipImageProcessorPil(**IMAGENET).save_pretrained(folder / ENCODER_NAMES[1])
    return folder
