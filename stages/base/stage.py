"""Stage `base`: the micro Stable Diffusion, `backbone/`.

If the shipped weights were made by the configured recipe, the stage copies them. Otherwise, or when it is forced, it
trains every part from scratch with the trainer. `context.scratch` keeps finished parts.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, Dinov2Model

from model.micro_sd.clip import ClipTask
from model.micro_sd.dino import DinoTask
from model.micro_sd.fingerprint import OutdatedWeightsError, WeightsError
from model.micro_sd.judge import Judge, JudgeTask
from model.micro_sd.recipe import PartRecipe, Recipe
from model.micro_sd.unet import UNetTask, encode_pool
from model.micro_sd.vae import VaeTask
from model.micro_sd.weights import WEIGHTS_FOLDER, save_backbone, verify_weights
from model.microworld.pool import build_pool
from model.training.task import TrainingTask
from stages.base.config import BaseConfig
from stages.contract import StageContext, StageError, StageResult
from stages.training.config import TrainerConfig
from stages.training.trainer import fit

CARD = """# Micro Stable Diffusion

Trained by the stage `base` of Realword on the procedural micro world; see `model/micro_sd/recipe.py`.
"""


def run(context: StageContext, shipped: Path = WEIGHTS_FOLDER) -> StageResult:
    """Write `backbone/`: the shipped weights, or newly trained ones."""
    config, backbone = context.config.base, context.output / "backbone"
    reason = "it was forced" if context.forced else why_not_shipped(shipped, config.recipe)
    if reason is None:
        context.report.progress(0, 1, "copying the weights that ship with the code")
        shutil.copytree(shipped, backbone)
        verify_weights(backbone, config.recipe)
        context.report.progress(1, 1, "copied the weights that ship with the code")
        return StageResult(notes={"weights": "shipped"})
    context.report.warning(f"The base model is trained from scratch: {reason}.")
    for number in train_parts(context, config):
        context.report.progress(number, len(PARTS), "training the base model")
    _assemble(context.scratch / "parts", backbone, config.recipe)
    return StageResult(notes={"weights": f"trained: {reason}"})


def why_not_shipped(shipped: Path, recipe: Recipe) -> str | None:
    """Why the shipped weights cannot be used; None if they can."""
    try:
        verify_weights(shipped, recipe)
    except OutdatedWeightsError as error:
        return str(error)
    except WeightsError as error:  # damaged, partial or foreign: do not start hours of training unasked
        raise StageError(
            f"{error}; restore {shipped} from the repository, or train from scratch with --force base."
        ) from error
    return None


@dataclass(frozen=True)
class Folders:
    """Folders of the trained parts and of the pools."""

    scratch: Path

    def part(self, name: str) -> Path:
        """Weights of a finished part; missing until then."""
        return self.scratch / "parts" / name

    def pool(self, name: str) -> Path:
        """A pool of scenes, or of their encodings."""
        return self.scratch / name


#: In this order: the UNet is trained on the latents of the VAE and the text states of CLIP.
PARTS = ("vae", "clip", "dino", "judge", "unet")


def train_parts(context: StageContext, config: BaseConfig) -> Iterator[int]:
    """Train the unfinished parts; yields the number of finished parts."""
    recipe, folders = config.recipe, Folders(context.scratch.resolve())
    workers = context.config.run.cpus or os.cpu_count() or 1
    context.report.progress(0, len(PARTS), "rendering the scenes")
    build_pool(folders.pool("pool"), recipe.pool, workers)
    build_pool(folders.pool("judge_pool"), recipe.judge_pool, workers)
    for number, name in enumerate(PARTS):
        yield number
        if not folders.part(name).exists():
            _train_part(name, context, config, folders)
    yield len(PARTS)


def _train_part(name: str, context: StageContext, config: BaseConfig, folders: Folders) -> None:
    if name == "unet":
        vae = AutoencoderKL.from_pretrained(folders.part("vae")).eval()
        clip = CLIPModel.from_pretrained(folders.part("clip")).eval()
        encode_pool(folders.pool("pool"), vae, clip, folders.pool("cache"))
    part: PartRecipe = getattr(config.recipe, name)
    weights, _ = fit(
        task_of(name, config.recipe, folders),
        steps=part.steps,
        config=_trainer(part, config),
        context=context,
        name=name,
        seed=part.seed,
        section="base",
        batch_size=part.batch,
        batch_setting=f"base.recipe.{name}.batch",
    )
    folders.part(name).parent.mkdir(exist_ok=True)
    weights.rename(folders.part(name))


def task_of(name: str, recipe: Recipe, folders: Folders) -> TrainingTask:
    """The training problem of a part."""
    pool = folders.pool("pool")
    match name:
        case "vae":
            return VaeTask(pool_folder=pool, recipe=recipe.vae, loss=recipe.vae_loss)
        case "clip":
            return ClipTask(pool_folder=pool, recipe=recipe.clip)
        case "dino":
            return DinoTask(pool_folder=pool, recipe=recipe.dino)
        case "judge":
            return JudgeTask(pool_folder=folders.pool("judge_pool"), recipe=recipe.judge)
        case _:
            return UNetTask(cache_folder=folders.pool("cache"), recipe=recipe.unet, training=recipe.unet_training)


def _trainer(part: PartRecipe, config: BaseConfig) -> TrainerConfig:
    """The trainer's configuration of a part. In fp32: the parts themselves use bf16 autocast where they can."""
    return TrainerConfig(
        workers=next(count for count in range(config.workers, 0, -1) if part.batch % count == 0),
        min_workers=config.min_workers,
        use_gpu=config.use_gpu,
        zero_stage=0,
        precision="fp32",
        learning_rate=part.lr,
        warmup_steps=part.warmup,
        final_share=part.final_share,
        beta2=part.beta2,
        weight_decay=part.weight_decay,
        gradient_clip=part.clip_norm,
        checkpoint_every=500,
    )


def _assemble(parts: Path, folder: Path, recipe: Recipe) -> None:
    save_backbone(
        folder,
        vae=AutoencoderKL.from_pretrained(parts / "vae"),
        unet=UNet2DConditionModel.from_pretrained(parts / "unet"),
        clip=CLIPModel.from_pretrained(parts / "clip"),
        dino=Dinov2Model.from_pretrained(parts / "dino"),
        judge=Judge.from_pretrained(parts / "judge"),
        recipe=recipe,
        card=CARD,
    )
