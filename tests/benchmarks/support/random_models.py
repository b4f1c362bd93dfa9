"""Models with random weights in the shapes of Stable Diffusion 1.5; time and memory do not depend on the weights.

Only the UNet has its full size. Text encoder, VAE and image encoder are as small as the shapes of their outputs allow;
the benchmarks do not time them.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from model.adapters.image_encoder import ImageEncoders, VisionTower
from model.backbone import Backbone
from model.micro_sd.weights import WEIGHTS_FOLDER

SD15_UNET: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
TEXT_TOKENS = 77
#: The autoencoder of SD-1.5 and SDXL.
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
#: The text encoder of SD-1.5, and the two of SDXL.
CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
CLIP_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
_REFERENCE = {"reference_size": 384, "tiles": 2}  # 27 x 27 patches, as SigLIP and DINOv2 have


def random_sd15(device: torch.device, dtype: torch.dtype) -> Backbone:
    """Build Stable Diffusion 1.5 at 64 x 64 latents, with the tokenizer of the micro Stable Diffusion."""
    torch.manual_seed(0)
    return random_backbone(UNet2DConditionModel(**SD15_UNET), device, dtype)


def random_backbone(unet: UNet2DConditionModel, device: torch.device, dtype: torch.dtype) -> Backbone:
    """Build a backbone of small parts around a UNet. It has one text encoder, even where SDXL has two."""
    width = unet.config.cross_attention_dim
    text = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=TEXT_TOKENS,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        norm_num_groups=1,
        mid_block_add_attention=False,
    )
    encoder = CLIPTextModel(text)
    for module in (unet, vae, encoder):
        module.eval().requires_grad_(False).to(device, dtype)
    return Backbone(
        vae=vae,
        unet=unet,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False),
        tokenizers=[AutoTokenizer.from_pretrained(WEIGHTS_FOLDER / "tokenizer", model_max_length=TEXT_TOKENS)],
        text_encoders=[encoder],
        family="sd",
    )


def random_encoders(device: torch.device, dtype: torch.dtype) -> ImageEncoders:
    """Build an encoder with as many tokens as the paper's pair: 729 patches, 1458 visual tokens."""
    torch.manual_seed(1)
    vision = CLIPVisionConfig(
        image_size=384,
        patch_size=14,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    half = (0.5, 0.5, 0.5)
    tower = VisionTower(CLIPVisionModel(vision), half, half, [0])
    return ImageEncoders([tower], **_REFERENCE).to(device, dtype)
