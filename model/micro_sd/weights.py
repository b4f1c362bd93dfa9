"""The weights folder: diffusers' layout in fp16 safetensors, with a fingerprint that is checked on use.

model_index.json  vae/  unet/  text_encoder/  tokenizer/  scheduler/    what plain diffusers loads
clip/             both contrastive towers: image encoder, and text-image agreement
dino/             the second image encoder, trained on instances
judge/            the independent judge
fingerprint.json  world version, recipe digest and the SHA-256 of every file above
README.md         the model card
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel, Dinov2Model, PreTrainedTokenizerFast

from model.micro_sd.architectures import build_scheduler, build_tokenizer, text_encoder_of
from model.micro_sd.fingerprint import (
    CARD,
    FINGERPRINT,
    OutdatedWeightsError,
    verify_fingerprint,
    write_fingerprint,
)
from model.micro_sd.judge import Judge
from model.micro_sd.recipe import Recipe

WEIGHTS_FOLDER = Path(__file__).parent / "weights"  # what ships with the code
WEIGHTS_FORMAT = "micro-stable-diffusion/1"
_Model = TypeVar("_Model", AutoencoderKL, UNet2DConditionModel, CLIPTextModel, CLIPModel, Dinov2Model, Judge)


@dataclass(frozen=True)
class MicroStableDiffusion:
    """The loaded models, in float32 and evaluation mode, frozen."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerFast
    scheduler: DDIMScheduler
    clip: CLIPModel
    dino: Dinov2Model
    judge: Judge

    def pipeline(self) -> StableDiffusionPipeline:
        """Diffusers' own text-to-image pipeline over these models."""
        pipeline = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def clean_config(config: Path) -> None:
    """Remove the source path and declare float32: transformers would otherwise load in half precision."""
    values = json.loads(config.read_text())
    values.pop("_name_or_path", None)
    for section in (values, values.get("text_config", {}), values.get("vision_config", {})):
        if "dtype" in section:
            section["dtype"] = "float32"
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def save_backbone(
    folder: Path,
    *,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    clip: CLIPModel,
    dino: Dinov2Model,
    judge: Judge,
    recipe: Recipe,
    card: str,
) -> None:
    """Write a weights folder, the fingerprint last. Converts the passed models to half precision."""
    for model in (vae, unet, clip, dino, judge):
        model.half()
    text_encoder = text_encoder_of(clip).half()
    pipeline = MicroStableDiffusion(
        vae, unet, text_encoder, build_tokenizer(), build_scheduler(), clip, dino, judge
    ).pipeline()
    (folder / FINGERPRINT).unlink(missing_ok=True)
    pipeline.save_pretrained(folder)
    clip.save_pretrained(folder / "clip")
    dino.save_pretrained(folder / "dino")
    judge.save_pretrained(folder / "judge")
    for config in folder.glob("*/config.json"):
        clean_config(config)
    (folder / CARD).write_text(card)
    write_fingerprint(folder, WEIGHTS_FORMAT, recipe.digest())


def verify_weights(folder: Path, recipe: Recipe | None = None) -> None:
    """Raise a `WeightsError` unless all files are complete and belong to this world and, if given, to this recipe."""
    fingerprint = verify_fingerprint(folder, WEIGHTS_FORMAT)
    if recipe is not None and fingerprint.get("recipe") != recipe.digest():
        raise OutdatedWeightsError(f"{folder} was trained by another recipe than the one configured")


def load_micro_sd(folder: Path = WEIGHTS_FOLDER) -> MicroStableDiffusion:
    """Verify and load a weights folder."""
    verify_weights(folder)

    def frozen(model: type[_Model], part: str) -> _Model:
        loaded: _Model = model.from_pretrained(folder / part)
        return loaded.float().eval().requires_grad_(False)

    return MicroStableDiffusion(
        vae=frozen(AutoencoderKL, "vae"),
        unet=frozen(UNet2DConditionModel, "unet"),
        text_encoder=frozen(CLIPTextModel, "text_encoder"),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"),
        clip=frozen(CLIPModel, "clip"),
        dino=frozen(Dinov2Model, "dino"),
        judge=frozen(Judge, "judge"),
    )
