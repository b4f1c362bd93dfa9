"""The models that the profiles sd15 and sdxl name, with random weights, in a cache of the Hugging Face hub.

The cache has the hub's own layout (`blobs`, `snapshots`, `refs`), so that hub ids resolve without network. The
configurations are those of the public models; narrow models have few channels, but as many blocks and positions.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

from tests.benchmarks.support.model_folders import (
    NARROW_TEXT,
    VOCABULARY,
    clip_tokenizer,
    randomize,
    write_sd15,
    write_sdxl,
)

SD15, SDXL = "stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0"
SIGLIP, DINO = "google/siglip-so400m-patch14-384", "facebook/dinov2-with-registers-large"
CLIP_B, CLIP_L, DINO_S = "openai/clip-vit-base-patch32", "openai/clip-vit-large-patch14", "facebook/dino-vits16"
_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_IMAGENET_MEAN, _IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_HALF = [0.5, 0.5, 0.5]
_NARROW: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
_CLIP_TEXT = {"vocab_size": VOCABULARY, "eos_token_id": 2}


def write_hub_cache(cache: Path, repositories: Sequence[str], *, narrow: bool = False) -> None:
    """Write the models that the cache lacks."""
    for repository in repositories:
        folder = cache / f"models--{repository.replace('/', '--')}"
        if not (folder / "refs" / "main").exists():
            made = folder / "made"
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir(parents=True)
            torch.manual_seed(0)
            _WRITERS[repository](made, narrow)
            _lay_out(made, folder)


def _lay_out(made: Path, folder: Path) -> None:
    """Move files to where the hub's own client would have put them."""
    files = sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
    revision = hashlib.sha1("\n".join(map(str, files)).encode()).hexdigest()
    snapshot, blobs = folder / "snapshots" / revision, folder / "blobs"
    blobs.mkdir(exist_ok=True)
    for file in files:
        link = snapshot / file
        link.parent.mkdir(parents=True, exist_ok=True)
        with (made / file).open("rb") as content:
            blob = blobs / hashlib.file_digest(content, "sha256").hexdigest()
        (made / file).rename(blob)
        link.symlink_to(Path(*[".."] * (len(file.parts) + 1), "blobs", blob.name))
    shutil.rmtree(made)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)


def _write_sd15(folder: Path, narrow: bool) -> None:
    write_sd15(folder, narrow=narrow)
    checker = StableDiffusionSafetyChecker
    _write(folder / "safety_checker", checker, _clip(14, 224, _VIT_L, narrow), _CLIP_MEAN, _CLIP_STD, 224)
    (folder / "feature_extractor").mkdir()
    (folder / "safety_checker" / "preprocessor_config.json").rename(
        folder / "feature_extractor" / "preprocessor_config.json"
    )


def _write_sdxl(folder: Path, narrow: bool) -> None:
    write_sdxl(folder, narrow=narrow)


def _write_siglip(folder: Path, narrow: bool) -> None:
    """Vision and text tower in one, as the hub has them."""
    sizes = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    sizes |= _NARROW if narrow else {}
    special = {"bos_token_id": 1, "eos_token_id": 1}
    text = {**sizes, "vocab_size": 32000, "max_position_embeddings": 64, **special}
    vision = {**sizes, "image_size": 384, "patch_size": 14}
    _write(folder, SiglipModel, SiglipConfig(text_config=text, vision_config=vision), _HALF, _HALF, 384)


def _write_dino(folder: Path, narrow: bool) -> None:
    """For 518 pixels: at 384 its positions are interpolated."""
    sizes = {"hidden_size": 1024, "num_attention_heads": 16}
    sizes |= {"hidden_size": 32, "num_attention_heads": 2} if narrow else {}
    config = Dinov2WithRegistersConfig(num_hidden_layers=24, image_size=518, patch_size=14, **sizes)
    _write(folder, Dinov2WithRegistersModel, config, _IMAGENET_MEAN, _IMAGENET_STD, 224)


def _write_clip(patch: int, sizes: dict[str, Any]) -> Callable[[Path, bool], None]:
    def write(folder: Path, narrow: bool) -> None:
        _write(folder, CLIPModel, _clip(patch, 224, sizes, narrow), _CLIP_MEAN, _CLIP_STD, 224)
        clip_tokenizer().save_pretrained(folder)

    return write


def _write_vit(folder: Path, narrow: bool) -> None:
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6} | (_NARROW if narrow else {})
    _write(folder, ViTModel, ViTConfig(**sizes, num_hidden_layers=12), _IMAGENET_MEAN, _IMAGENET_STD, 224)


_VIT_B: dict[str, Any] = {
    "projection_dim": 512,
    "vision": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "text": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8},
}
_VIT_L: dict[str, Any] = {
    "projection_dim": 768,
    "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
}


def _clip(patch: int, side: int, sizes: dict[str, Any], narrow: bool) -> CLIPConfig:
    vision = {**sizes["vision"], "image_size": side, "patch_size": patch} | (_NARROW if narrow else {})
    text = {**sizes["text"], **_CLIP_TEXT} | (NARROW_TEXT if narrow else {})
    width = 32 if narrow else sizes["projection_dim"]
    return CLIPConfig(vision_config=vision, text_config=text, projection_dim=width)


def _write(folder: Path, kind: Any, config: Any, mean: list[float], std: list[float], side: int) -> None:
    with torch.device("meta"):
        model = kind(config)
    randomize(model, torch.float32).save_pretrained(folder)
    settings = {"image_mean": mean, "image_std": std, "size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


_WRITERS: dict[str, Callable[[Path, bool], None]] = {
    SD15: _write_sd15,
    SDXL: _write_sdxl,
    SIGLIP: _write_siglip,
    DINO: _write_dino,
    CLIP_B: _write_clip(32, _VIT_B),
    CLIP_L: _write_clip(14, _VIT_L),
    DINO_S: _write_vit,
}
