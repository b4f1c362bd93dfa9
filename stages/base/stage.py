"""Stage `base`: the micro Stable Diffusion, `backbone/`.

If the shipped weights were made by the configured recipe, the stage copies them. Otherwise, or when it is forced, it
trains every part from scratch with the trainer. `context.scratch` keeps finished parts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from stages.local_copies import local_copy
from stages.ray_tools.placement import node_selector
from stages.storage import StorePath, absolute, copy_folder, is_remote, local_folder, write_whole
from stages.storage_errors import store_errors_as_stage_errors
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
        copy_folder(shipped, backbone)
        if isinstance(backbone, Path):
            verify_weights(backbone, config.recipe)
        context.report.progress(1, 1, "copied the weights that ship with the code")
        return StageResult(notes={"weights": "shipped"})
    context.report.warning(f"The base model is trained from scratch: {reason}.")
    for number in train_parts(context, config):
        context.report.progress(number, len(PARTS), "training the base model")
    _where_files_are(context.scratch, _assemble, absolute(context.scratch / "parts"), absolute(backbone), config.recipe)
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

    scratch: StorePath

    def part(self, name: str) -> StorePath:
        """Weights of a part."""
        return self.scratch / "parts" / name

    def pool(self, name: str) -> StorePath:
        """A pool of scenes, or of their encodings."""
        return self.scratch / name

    def is_finished(self, name: str) -> bool:
        """Whether a part has been trained."""
        return (self.part(name) if isinstance(self.scratch, Path) else self._mark(name)).exists()

    def finish(self, name: str, weights: StorePath) -> None:
        """Keep the weights of a part; a store has no rename, so that a mark says that all files are there."""
        part = self.part(name)
        if isinstance(part, Path) and isinstance(weights, Path):
            part.parent.mkdir(exist_ok=True)
            weights.rename(part)
        else:
            copy_folder(weights, part)
            write_whole(self._mark(name), b"")

    def _mark(self, name: str) -> StorePath:
        return self.part(f"{name}.finished")


#: In this order: the UNet is trained on the latents of the VAE and the text states of CLIP.
PARTS = ("vae", "clip", "dino", "judge", "unet")


def train_parts(context: StageContext, config: BaseConfig) -> Iterator[int]:
    """Train the unfinished parts; yields the number of finished parts."""
    folders = Folders(absolute(context.scratch))
    context.report.progress(0, len(PARTS), "rendering the scenes")
    _where_files_are(context.scratch, _build_pools, folders, config.recipe, context.config.run.cpus)
    for number, name in enumerate(PARTS):
        yield number
        if not folders.is_finished(name):
            _train_part(name, context, config, folders)
    yield len(PARTS)


def _where_files_are(scratch: StorePath, work: Callable[..., None], *arguments: Any) -> None:
    """Do the work here, or on the cluster when the files are in an object store, which may be far from this machine."""
    if not is_remote(scratch):
        work(*arguments)
        return
    import ray

    with store_errors_as_stage_errors(scratch):
        ray.get(ray.remote(num_cpus=1, label_selector=node_selector())(work).remote(*arguments))


def _build_pools(folders: Folders, recipe: Recipe, cpus: int | None) -> None:
    for name, pool in (("pool", recipe.pool), ("judge_pool", recipe.judge_pool)):
        if isinstance(folders.scratch, Path) or not (folders.pool(name) / "stamp.json").exists():
            with local_folder(folders.pool(name)) as folder:
                build_pool(folder, pool, cpus or os.cpu_count() or 1)


def _train_part(name: str, context: StageContext, config: BaseConfig, folders: Folders) -> None:
    if name == "unet":
        _where_files_are(context.scratch, _encode_pool, folders)
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
    folders.finish(name, weights)


def _encode_pool(folders: Folders) -> None:
    vae = AutoencoderKL.from_pretrained(local_copy(folders.part("vae"))).eval()
    clip = CLIPModel.from_pretrained(local_copy(folders.part("clip"))).eval()
    with local_folder(folders.pool("cache")) as cache:
        encode_pool(local_copy(folders.pool("pool")), vae, clip, cache)


def task_of(name: str, recipe: Recipe, folders: Folders) -> TrainingTask:
    """The training problem of a part."""
    pool = str(folders.pool("pool"))
    match name:
        case "vae":
            return VaeTask(pool_folder=pool, recipe=recipe.vae, loss=recipe.vae_loss)
        case "clip":
            return ClipTask(pool_folder=pool, recipe=recipe.clip)
        case "dino":
            return DinoTask(pool_folder=pool, recipe=recipe.dino)
        case "judge":
            return JudgeTask(pool_folder=str(folders.pool("judge_pool")), recipe=recipe.judge)
        case _:
            return UNetTask(cache_folder=str(folders.pool("cache")), recipe=recipe.unet, training=recipe.unet_training)


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


def _assemble(parts: StorePath, backbone: StorePath, recipe: Recipe) -> None:
    vae, unet, clip, dino, judge = (local_copy(parts / name) for name in ("vae", "unet", "clip", "dino", "judge"))
    with local_folder(backbone) as folder:
        save_backbone(
            folder,
            vae=AutoencoderKL.from_pretrained(vae),
            unet=UNet2DConditionModel.from_pretrained(unet),
            clip=CLIPModel.from_pretrained(clip),
            dino=Dinov2Model.from_pretrained(dino),
            judge=Judge.from_pretrained(judge),
            recipe=recipe,
            card=CARD,
        )
