"""Pictures as tensors, and tensors as pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_tensor(pictures: Image.Image | Sequence[Image.Image]) -> Tensor:
    """Convert RGB pictures of one size to (B, 3, H, W) in [0, 1], or a single picture to (3, H, W)."""
    if isinstance(pictures, Image.Image):
        return torch.from_numpy(np.array(pictures.convert("RGB"))).permute(2, 0, 1).float() / 255
    return torch.stack([to_tensor(picture) for picture in pictures])


def to_pictures(tensor: Tensor) -> list[Image.Image]:
    """Convert (B, 3, H, W) in [0, 1] to RGB pictures. Values outside are clipped."""
    array = (tensor.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in array]


def mask_picture(masks: Tensor, side: int) -> Image.Image:
    """Draw masks (S, G, G') in [0, 1] as one grey picture whose shorter side is at least `side`.

    A position has the largest of its S values, and becomes a block of whole pixels.
    """
    mask = masks.amax(0)
    block = max(1, -(-side // min(mask.shape)))
    grey = (mask.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    return Image.fromarray(grey.repeat_interleave(block, 0).repeat_interleave(block, 1).numpy())
