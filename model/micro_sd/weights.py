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

from model.checksums import file_checksum
from model.errors import ModelError
from model.micro_sd.architectures import build_scheduler, build_tokenizer, text_encoder_of
from model.micro_sd.judge import Judge
from model.micro_sd.recipe import Recipe
from model.microworld.version import WORLD_VERSION

WEIGHTS_FOLDER = Path(__file__).parent / "weights"  # what ships with the code
FINGERPRINT = "fingerprint.json"
CARD = "README.md"
_FORMAT = "micro-stable-diffusion/1"
_Model = TypeVar("_Model", AutoencoderKL, UNet2DConditionModel, CLIPTextModel, CLIPModel, Dinov2Model, Judge)


class WeightsError(ModelError):
    """A weights folder cannot be used; the message says why."""


class ForeignWeightsError(WeightsError):
    """The folder is not a weights folder."""


class PartialWeightsError(WeightsError):
    """A file is missing."""


class DamagedWeightsError(WeightsError):
    """A file differs from the one that was written."""


class OutdatedWeightsError(WeightsError):
    """The weights belong to another world or recipe."""


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


def _model_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (FINGERPRINT, CARD))


def _clean_config(config: Path) -> None:
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
        _clean_config(config)
    (folder / CARD).write_text(card)
    files = {path.relative_to(folder).as_posix(): file_checksum(path) for path in _model_files(folder)}
    fingerprint = {"format": _FORMAT, "world_version": WORLD_VERSION, "recipe": recipe.digest(), "files": files}
    (folder / FINGERPRINT).write_text(json.dumps(fingerprint, indent=2) + "\n")


def _read_fingerprint(folder: Path) -> dict[str, object]:
    path = folder / FINGERPRINT
    if not path.is_file():
        raise ForeignWeightsError(f"{folder} is not a weights folder of the micro Stable Diffusion: no {FINGERPRINT}")
    try:
        fingerprint = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedWeightsError(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(fingerprint, dict) or fingerprint.get("format") != _FORMAT:
        raise ForeignWeightsError(f"{path} is not a fingerprint of the micro Stable Diffusion")
    return fingerprint


def verify_weights(folder: Path, recipe: Recipe | None = None) -> None:
    """Raise a `WeightsError` unless all files are complete and belong to this world and, if given, to this recipe."""
    fingerprint = _read_fingerprint(folder)
    files = fingerprint.get("files")
    if not isinstance(files, dict) or not files:
        raise DamagedWeightsError(f"{folder / FINGERPRINT} is damaged: it lists no files")
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            raise PartialWeightsError(f"{folder} is incomplete: {name} is missing")
        if file_checksum(path) != digest:
            raise DamagedWeightsError(f"{path} is damaged: its checksum is not the one recorded in {FINGERPRINT}")
    if fingerprint.get("world_version") != WORLD_VERSION:
        raise OutdatedWeightsError(
            f"{folder} was trained on world version {fingerprint.get('world_version')}, the code has {WORLD_VERSION}"
        )
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
