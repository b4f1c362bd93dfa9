"""Stable Diffusion 1.5 and XL with random weights, in diffusers' folder layout as on the hub.

At their full size, or narrow: with as many blocks and positions, but few channels, for tests.
"""

from __future__ import annotations

import json
import math
import string
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from model.adapters.released_weights import SDXL_UNET
from tests.benchmarks.support.random_models import CLIP_G, CLIP_L, SD15_UNET, TEXT_TOKENS, VAE

VOCABULARY = 49408
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_SDXL_UNET = {**SDXL_UNET, "sample_size": 128}
#: What narrow models have instead.
NARROW_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "projection_dim": 32,
}
_NARROW_VAE: dict[str, Any] = {"block_out_channels": (8, 16, 32, 32), "norm_num_groups": 4}
_NARROW_SD15: dict[str, Any] = {
    "block_out_channels": (32, 64, 64, 64),
    "attention_head_dim": 2,
    "cross_attention_dim": 32,
}
_NARROW_SDXL: dict[str, Any] = {
    "block_out_channels": (32, 64, 64),
    "attention_head_dim": (1, 2, 2),
    "cross_attention_dim": 64,
    "projection_class_embeddings_input_dim": 6 * 256 + 32,
}


def write_sd15(folder: Path, *, narrow: bool = False) -> None:
    """Write Stable Diffusion 1.5 in fp32."""
    unet, vae, text = (_NARROW_SD15, _NARROW_VAE, NARROW_TEXT) if narrow else ({}, {}, {})
    _write_unet(folder, SD15_UNET | unet, torch.float32)
    _write_vae(folder, torch.float32, scaling_factor=0.18215, **VAE | vae)
    _write_text_encoder(folder, "", CLIPTextModel, CLIP_L | text, torch.float32)
    _write_scheduler(folder)
    _write_index(folder, "StableDiffusionPipeline", "")


def write_sdxl(folder: Path, *, narrow: bool = False) -> None:
    """Write Stable Diffusion XL in bf16."""
    unet, vae, text = (_NARROW_SDXL, _NARROW_VAE, NARROW_TEXT) if narrow else ({}, {}, {})
    _write_unet(folder, _SDXL_UNET | unet, torch.bfloat16)
    _write_vae(folder, torch.bfloat16, scaling_factor=0.13025, **VAE | vae)
    _write_text_encoder(folder, "", CLIPTextModel, CLIP_L | text, torch.bfloat16)
    _write_text_encoder(folder, "_2", CLIPTextModelWithProjection, CLIP_G | text, torch.bfloat16)
    _write_scheduler(folder)
    _write_index(folder, "StableDiffusionXLPipeline", "", "_2")


def _write_unet(folder: Path, shape: dict[str, Any], dtype: torch.dtype) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**shape)
    randomize(unet, dtype).save_pretrained(folder / "unet", max_shard_size="20GB")


def _write_vae(folder: Path, dtype: torch.dtype, **config: Any) -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(**config)
    randomize(vae, dtype).save_pretrained(folder / "vae")


def _write_text_encoder(folder: Path, suffix: str, kind: Any, sizes: dict[str, Any], dtype: torch.dtype) -> None:
    """With the hub's names of the weights, and its id of the end token, which is not the tokenizer's."""
    config = CLIPTextConfig(vocab_size=VOCABULARY, max_position_embeddings=TEXT_TOKENS, eos_token_id=2, **sizes)
    with torch.device("meta"):
        encoder = kind(config)
    weights = {
        name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}": weight
        for name, weight in randomize(encoder, dtype).state_dict().items()
    }
    place = folder / f"text_encoder{suffix}"
    encoder.config.save_pretrained(place)
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    clip_tokenizer().save_pretrained(folder / f"tokenizer{suffix}")


def _write_scheduler(folder: Path) -> None:
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    scheduler.save_pretrained(folder / "scheduler")


def _write_index(folder: Path, pipeline: str, *suffixes: str) -> None:
    parts = {
        "_class_name": pipeline,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    for suffix in suffixes:
        kind = "CLIPTextModelWithProjection" if suffix else "CLIPTextModel"
        parts[f"text_encoder{suffix}"] = ["transformers", kind]
        parts[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"]
    (folder / "model_index.json").write_text(json.dumps(parts))


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with a token for each letter, and as many others as CLIP has."""
    characters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    tokens = [*characters, *(f"{character}</w>" for character in characters)]
    others = [f"other{number}" for number in range(VOCABULARY - len(tokens) - len(_SPECIAL))]
    vocabulary = {token: index for index, token in enumerate([*tokens, *others, *_SPECIAL])}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TEXT_TOKENS)


def randomize(model: Any, dtype: torch.dtype) -> Any:
    """Give a model on the device "meta" weights that keep the scale of what passes through."""
    model.to(dtype).to_empty(device="cpu")
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.dim() > 1:
                nn.init.normal_(weight, std=1 / math.sqrt(math.prod(weight.shape[1:])))
            else:
                nn.init.constant_(weight, float(name == "weight"))
    return model.requires_grad_(False)
