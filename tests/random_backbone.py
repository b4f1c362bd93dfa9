"""A micro Stable Diffusion with random weights, for tests that need the shapes only."""

from __future__ import annotations

from pathlib import Path

import torch

from model.micro_sd.architectures import build_clip, build_unet, build_vae
from model.micro_sd.judge import Judge
from model.micro_sd.recipe import Recipe
from model.micro_sd.weights import save_backbone


def write_random_backbone(folder: Path, seed: int = 0) -> Path:
    """Write the layout of `model/micro_sd/weights` with random weights into `folder`."""
    torch.manual_seed(seed)
    vae, unet, clip, judge = build_vae(), build_unet(), build_clip(), Judge()
    save_backbone(folder, vae=vae, unet=unet, clip=clip, judge=judge, recipe=Recipe(), card="Random weights.\n")
    return folder
