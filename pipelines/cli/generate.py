"""Paint with the adapter of the last run: the command `generate`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from model.errors import ModelError
from model.pictures.decoding import load_picture
from model.pictures.tensors import mask_picture
from model.pipeline import RealCustomOutput, RealCustomPipeline
from pipelines.config.keys import configuration_keys
from pipelines.config.loading import with_values
from pipelines.errors import PipelineError
from pipelines.store.store import Output, Store
from stages.config import Config
from stages.inference import backbone_location, loading_options


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture for each subject, all from one prompt.

    Attributes:
        subjects: Picture files.
        words: The word of the prompt that the subject stands for: one for each subject, or one for all.
        seed: Of the first picture; the next one's is one more.
        steps: Of the sampler; None: `inference.steps`.
    """

    subjects: Sequence[Path]
    words: Sequence[str]
    prompt: str
    seed: int = 0
    steps: int | None = None


#: What an adapter depends on; another version's manifest may have more.
_BACKBONE_KEYS = [key for key in configuration_keys() if key.startswith("backbone.")]


def generate_picture(config: Config, store: Store, request: Request, folder: Path) -> list[Path]:
    """Paint the request; the files written into `folder`: a picture and its mask for each subject.

    Raises:
        PipelineError: No adapter is trained yet, a file is damaged or no picture, a word is not in the prompt.
    """
    adapter, config, backbone = trained_adapter(config, store)
    try:
        subjects = [load_picture(path) for path in request.subjects]
        pipeline = RealCustomPipeline.from_pretrained(
            backbone,
            adapter.folder / "adapter",
            dtype=getattr(torch, config.backbone.dtype),
            device="cuda" if torch.cuda.is_available() else "cpu",
            **loading_options(config.backbone),
        )
        words = list(request.words) * (len(subjects) if len(request.words) == 1 else 1)
        settings = config.inference if request.steps is None else config.inference.with_steps(request.steps)
        painted = pipeline([request.prompt] * len(subjects), subjects, words, settings=settings, seeds=request.seed)
    except ModelError as error:
        raise PipelineError(str(error)) from error
    return _write(painted, request, folder)


def trained_adapter(config: Config, store: Store) -> tuple[Output, Config, str]:
    """The latest adapter, the configuration with the backbone that it was trained on, and where that backbone lies."""
    adapter = store.latest_outputs().get("train_adapter")
    if adapter is None:
        raise PipelineError(
            f"There is no trained adapter in {store.folder} yet; train it with "
            f"python pipeline.py run --stage train_adapter --profile {config.profile} --set run.folder={store.folder}."
        )
    manifest = adapter.manifest
    backbone = {key: manifest.config[key] for key in _BACKBONE_KEYS if key in manifest.config}
    config = with_values(config, backbone)
    base = store.output("base", manifest.inputs["base"]) if "base" in manifest.inputs else None
    for output in (adapter, base):
        if output is not None and (damage := output.damage(thorough=True)):
            raise PipelineError(damage)
    return adapter, config, backbone_location(config.backbone, {"base": base.folder} if base else {})


def _write(painted: RealCustomOutput, request: Request, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    title = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower()).strip("-")[:80]
    files: list[Path] = []
    for number, (picture, masks) in enumerate(zip(painted.images, painted.masks, strict=True)):
        name = f"{title}-{request.seed + number}"
        files += _save(picture, folder / f"{name}.png")
        if masks:
            files += _save(mask_picture(masks[-1], min(picture.size)), folder / f"{name}-mask.png")
    return files


def _save(picture: Image.Image, path: Path) -> list[Path]:
    picture.save(path)
    return [path]
