"""Concepts of subjects of the microworld, trained in this process with the product's examples, losses and rates."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.concepts.contextualizer import ContextualizerTask
from model.concepts.customization_settings import ConceptSubject
from model.concepts.customization_task import CustomizationTask
from model.micro_sd.weights import WEIGHTS_FOLDER
from model.microworld.shapes import TRAINED_CATEGORIES
from prompts.english.nouns import without_placeholder
from prompts.grammars import grammar_prompts
from prompts.schema import TAILORED
from stages.config import Config
from stages.customize.config import CustomizeConfig
from stages.customize.preparation import customization_settings
from stages.prompts.quotas import counts_of
from stages.training.config import TrainerConfig
from stages.training.engine import learning_rate
from stages.training.optimizer import new_optimizer

PLACEHOLDER = "[v]"


@dataclass(frozen=True, kw_only=True)
class AlbumSubject:
    """A subject with its album, to which a method can overfit, and views in other places that no training sees.

    Attributes:
        album: Encoded pictures.
        views: The same.
    """

    name: str
    word: str
    album: tuple[bytes, ...]
    views: tuple[bytes, ...]

    @classmethod
    def of(cls, entry: Mapping[str, Any], folder: Path) -> AlbumSubject:
        """A subject of an entry of the microworld's `subjects.json`."""
        album, views = (tuple((folder / name).read_bytes() for name in entry[key]) for key in ("album", "pictures"))
        return cls(name=entry["subject"], word=entry["word"], album=album, views=views)


def rich_prompts(word: str, config: Config, left_out: Sequence[str], *, tailored: bool = False) -> list[str]:
    """The context-rich or tailored prompts of a word from the micro grammar, without those that serve evaluation."""
    counts = counts_of(config.prompts.quotas, config.prompts.prompts_per_concept)
    if tailored:
        counts = {TAILORED: config.prompts.tailored_prompts}
    written = grammar_prompts("micro", word, counts, config.run.seed, config.prompts.max_similarity)
    return [prompt.prompt for prompt in written if without_placeholder(prompt.prompt) not in left_out]


def trained_contextualizer(folder: Path, config: Config, left_out: Sequence[str]) -> Path:
    """psi and p_mask in `folder`, trained there by the stage's defaults if it has none."""
    settings = config.contextualizer
    if not (folder / "config.json").exists():
        prompts = [
            without_placeholder(prompt)
            for word in TRAINED_CATEGORIES
            for prompt in rich_prompts(word, config, left_out)
        ]
        task = ContextualizerTask(
            backbone=str(WEIGHTS_FOLDER),
            prompts=prompts,
            batch_size=settings.batch_size,
            layers=settings.layers,
            mask_rate=settings.mask_rate,
            seed=config.run.seed,
        )
        torch.manual_seed(config.run.seed)
        module = task.module().train()
        optimizer = Optimizer(module, {}, settings.trainer, settings.steps)
        for step in range(settings.steps):
            optimizer.step(module(task.batch(step, 0, 1))["loss"], step)
        task.export(module, folder)
    return folder


def trained_concept(
    folder: Path,
    subject: AlbumSubject,
    config: Config,
    *,
    contextualizer: Path | None = None,
    rich: Sequence[str] = (),
    placeholder: str = PLACEHOLDER,
) -> dict[int, Path]:
    """The concept of a subject at each step that is sampled, trained if `folder` does not exist."""
    customize = config.customize
    steps = checkpoint_steps(customize)
    if not folder.exists():
        scratch = folder.with_name(f"{folder.name}.{os.getpid()}")
        task = CustomizationTask(
            backbone=str(WEIGHTS_FOLDER),
            subjects=(
                ConceptSubject(
                    name=subject.name,
                    word=subject.word,
                    placeholder=placeholder,
                    pictures=subject.album,
                ),
            ),
            settings=customization_settings(config),
            contextualizer=None if contextualizer is None else str(contextualizer),
            rich_prompts=tuple(rich),
            seed=config.run.seed,
        )
        module = task.module().train()
        optimizer = Optimizer(module, task.rates(module), customize.trainer, customize.steps)
        for step in range(customize.steps):
            optimizer.step(module(task.batch(step, 0, 1))["loss"], step)
            if step + 1 in steps:
                task.export(module, step_folder(scratch, step + 1))
        scratch.rename(folder)
    return {step: step_folder(folder, step) for step in steps}


def checkpoint_steps(customize: CustomizeConfig) -> list[int]:
    """Every `sample_every` steps and at the end."""
    every = customize.sample_every or customize.steps
    return sorted({*range(every, customize.steps + 1, every), customize.steps})


def step_folder(folder: Path, step: int) -> Path:
    """Where the concept of a step is."""
    return folder / f"step-{step:06d}"


class Optimizer:
    """The trainer's optimizer, schedule and clipping, with factors of the rate by the parameters' names."""

    def __init__(self, module: nn.Module, rates: Mapping[str, float], config: TrainerConfig, steps: int) -> None:
        named = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self._weights, self._config, self._steps = list(named.values()), config, steps
        self._optimizer, self._factors = new_optimizer(named, config, rates)

    def step(self, loss: torch.Tensor, step: int) -> None:
        """One step down the gradient of a loss ()."""
        rate = learning_rate(step, self._steps, self._config)
        for group, factor in zip(self._optimizer.param_groups, self._factors, strict=True):
            group["lr"] = rate * factor
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._weights, self._config.gradient_clip)
        self._optimizer.step()
