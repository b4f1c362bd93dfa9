"""Small random models in the shapes of SD-1.5 and SDXL, in diffusers' folder layout; they load in milliseconds."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
)

MAX_TOKENS = 24
IMAGE_WIDTH = 16
RESOLUTION = 32
ENCODERS: dict[str, Any] = {
    "image_encoders": ["clip"],
    "shallow_layers": [[0, 1]],
    "reference_size": 16,
    "tiles": 2,
}
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def build_clip_tokenizer() -> CLIPTokenizer:
    """CLIP's own tokenizer with a token a letter, and "cat" and "in" as whole words: most words take several tokens."""
    characters = string.ascii_lowercase + string.digits + string.punctuation
    merges = [("c", "a"), ("ca", "t</w>"), ("i", "n</w>")]
    tokens = [*characters, *(f"{character}</w>" for character in characters), *("".join(pair) for pair in merges)]
    vocabulary = {token: index for index, token in enumerate([*tokens, *_SPECIAL])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def write_sd(folder: Path) -> Path:
    """Attention at 16, 8, 4 and (middle) 2 positions a side, as SD-1.5 has 64, 32, 16 and 8; two image encoders."""
    torch.manual_seed(0)
    cross = ("CrossAttnDownBlock2D",) * 3, ("CrossAttnUpBlock2D",) * 3
    unet = UNet2DConditionModel(
        down_block_types=(*cross[0], "DownBlock2D"),
        up_block_types=("UpBlock2D", *cross[1]),
        block_out_channels=(8, 16, 16, 16),
        cross_attention_dim=16,
        attention_head_dim=2,
        **_UNET,
    )
    tokenizer = build_clip_tokenizer()
    pipeline = StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(tokenizer)).eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    _clip().save_pretrained(folder / "clip")
    _dino().save_pretrained(folder / "dino")
    return folder


def write_sdxl(folder: Path) -> Path:
    """Two text encoders, pooled embedding, time ids; attention at 8 and 4 positions a side as SDXL has 64 and 32."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16, 16),
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=32,
        attention_head_dim=(1, 2, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
        **_UNET,
    )
    tokenizer = build_clip_tokenizer()
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(tokenizer)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer)).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet.eval(),
        scheduler=_scheduler(),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    _clip().save_pretrained(folder / "clip")
    _dino().save_pretrained(folder / "dino")
    return folder


_UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        latent_channels=4,
        norm_num_groups=2,
        sample_size=RESOLUTION,
    ).eval()


def _text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


_VISION: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": IMAGE_WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}


def _dino() -> Dinov2Model:
    return Dinov2Model(Dinov2Config(mlp_ratio=2, **_VISION)).eval()


def _clip() -> CLIPModel:
    vision = {"intermediate_size": 32, **_VISION}
    text = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()


def _scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
