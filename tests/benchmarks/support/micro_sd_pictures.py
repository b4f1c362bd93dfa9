"""Prompts that cover every class, and pictures of them by plain diffusers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from torch import Tensor

from model.micro_sd.architectures import IMAGE_SIZE
from model.micro_sd.weights import MicroStableDiffusion
from model.microworld.appearance import PATTERN_NAMES, PLAIN
from model.microworld.backgrounds import BACKGROUNDS
from model.microworld.captions import plain_caption
from model.microworld.instances import COLOUR_NAMES
from model.microworld.shapes import TRAINED_CATEGORIES

GUIDANCE = 5.0
STEPS = 25
_CHUNK = 32

StepCallback = Callable[[int, slice], None]


@dataclass(frozen=True)
class PromptSet:
    """Prompts and the classes that they name, each (N,); colour is -1 where the prompt names none."""

    texts: list[str]
    category: Tensor
    background: Tensor
    colour: Tensor

    @classmethod
    def draw(cls, count: int, seed: int) -> "PromptSet":
        """Draw prompts with every category and background equally often; about half of them name a colour."""
        rng = np.random.default_rng(seed)
        number = np.arange(count)
        category = number % len(TRAINED_CATEGORIES)
        background = (number // len(TRAINED_CATEGORIES) + 3 * category) % len(BACKGROUNDS)
        colour = np.where(rng.random(count) < 0.5, rng.integers(len(COLOUR_NAMES), size=count), -1)
        texts = [
            plain_caption(TRAINED_CATEGORIES[c], BACKGROUNDS[b], COLOUR_NAMES[k] if k >= 0 else None)
            for c, b, k in zip(category, background, colour, strict=True)
        ]
        return cls(texts, torch.from_numpy(category), torch.from_numpy(background), torch.from_numpy(colour))


@dataclass(frozen=True)
class AppearancePrompts:
    """N prompts that name category, pattern and two colours of an object; each as in the judge's answers."""

    texts: list[str]
    category: list[str]
    pattern: list[str]
    colours: list[frozenset[str]]

    @classmethod
    def draw(cls, count: int, seed: int) -> "AppearancePrompts":
        """Draw prompts with every pattern equally often: "a photo of a red and white striped mug in the snow"."""
        rng = np.random.default_rng(seed)
        patterns = [name for name in PATTERN_NAMES if name != PLAIN]
        drawn = cls([], [], [], [])
        for number in range(count):
            main, second = (COLOUR_NAMES[index] for index in rng.choice(len(COLOUR_NAMES), 2, replace=False))
            category, background = str(rng.choice(TRAINED_CATEGORIES)), str(rng.choice(BACKGROUNDS))
            pattern = patterns[number % len(patterns)]
            drawn.texts.append(plain_caption(f"{pattern} {category}", background, f"{main} and {second}"))
            drawn.category.append(category)
            drawn.pattern.append(pattern)
            drawn.colours.append(frozenset((main, second)))
        return drawn


def two_object_prompts(count: int) -> tuple[list[str], Tensor]:
    """Prompts "a photo of a robot and a mug on the beach", and the two categories (N, 2) that each names."""
    categories = len(TRAINED_CATEGORIES)
    number = np.arange(count)
    first = number % categories
    second = (first + 1 + number // categories % (categories - 1)) % categories
    texts = [
        plain_caption(TRAINED_CATEGORIES[a], BACKGROUNDS[i % len(BACKGROUNDS)], neighbour=TRAINED_CATEGORIES[b])
        for i, (a, b) in enumerate(zip(first, second, strict=True))
    ]
    return texts, torch.from_numpy(np.stack([first, second], 1))


def _chunks(count: int, size: int = _CHUNK) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _diffusers_callback(on_step: StepCallback | None, part: slice) -> Callable[..., dict[str, Any]] | None:
    if on_step is None:
        return None

    def callback(_: StableDiffusionPipeline, __: int, timestep: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        on_step(int(timestep), part)
        return state

    return callback


def paint(
    models: MicroStableDiffusion,
    prompts: list[str],
    seed: int,
    guidance: float = GUIDANCE,
    steps: int = STEPS,
    on_step: StepCallback | None = None,
) -> Tensor:
    """Paint pictures (N, 3, 64, 64) in [-1, 1]; the noise of each does not depend on N.

    `on_step` is called after each denoising step with its timestep and the slice of the prompts in the batch.
    """
    pipeline = models.pipeline()
    noise = torch.stack(
        [torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(seed + i)) for i in range(len(prompts))]
    )
    pictures = [
        pipeline(
            prompts[part],
            latents=noise[part],
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=64,
            width=64,
            output_type="pt",
            callback_on_step_end=_diffusers_callback(on_step, part),
        ).images
        for part in _chunks(len(prompts))
    ]
    return torch.cat(pictures) * 2 - 1


def paint_grid(models: MicroStableDiffusion, seed: int = 0) -> Image.Image:
    """Paint every trained category (rows) with every background (columns), with their names."""
    texts = [plain_caption(category, background) for category in TRAINED_CATEGORIES for background in BACKGROUNDS]
    pixels = ((paint(models, texts, seed) + 1) * 127.5).clamp(0, 255).round().byte().permute(0, 2, 3, 1).numpy()
    side, left, top = IMAGE_SIZE, 76, 20
    grid = Image.new("RGB", (left + side * len(BACKGROUNDS), top + side * len(TRAINED_CATEGORIES)), "white")
    draw = ImageDraw.Draw(grid)
    for column, background in enumerate(BACKGROUNDS):
        draw.text((left + (column + 0.5) * side, top / 2), background, "black", anchor="mm", font_size=12)
    for row, category in enumerate(TRAINED_CATEGORIES):
        draw.text((left - 8, top + (row + 0.5) * side), category, "black", anchor="rm", font_size=12)
    for number, picture in enumerate(pixels):
        row, column = divmod(number, len(BACKGROUNDS))
        grid.paste(Image.fromarray(picture), (left + column * side, top + row * side))
    return grid
