"""A micro Stable Diffusion with random weights, for tests that need the shapes only."""

from __future__ import annotations

from pathlib import Path

import torch

from model.micro_sd.architectures import build_clip, build_dino, build_unet, build_vae
from model.micro_sd.judge import Judge
from model.micro_sd.recipe import Recipe
from model.micro_sd.weights import save_backbone


def write_random_backbone(folder: Path, seed: int = 0, recipe: Recipe | None = None) -> Path:
    """Write the layout of `model/micro_sd/weights` with random weights into `folder`."""
    torch.manual_seed(seed)
    save_backbone(
        folder,
        vae=build_vae(),
        unet=build_unet(),
        clip=build_clip(),
        dino=build_dino(),
        judge=Judge(),
        recipe=recipe or Recipe(),
        card="Random weights.\n",
    )
    return folder
