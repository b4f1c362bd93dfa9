"""The independent judge: finds the object of a picture, and classifies it and the background.

It answers for the object's category, pattern, main colour and second colour, and embeds its identity. It is trained
separately from the models that it judges and shares no weights with them. Its category head has the trained categories
only; all other heads are trained on all categories, including the held-out ones.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from numpy.typing import NDArray
from torch import Tensor, nn

from model.micro_sd.contrastive import instance_loss
from model.micro_sd.data import crop_around, draw_indices, images_at, masks_at, open_pool, seeded_generator
from model.micro_sd.recipe import PartRecipe
from model.microworld.appearance import PATTERN_NAMES, SECOND_COLOUR_NAMES
from model.microworld.backgrounds import BACKGROUNDS
from model.microworld.instances import COLOUR_NAMES
from model.microworld.shapes import CATEGORIES, TRAINED_CATEGORIES
from model.training.precision import mixed_precision

_IGNORED = -100


@dataclass(frozen=True)
class Verdict:
    """The judge's outputs for B pictures."""

    mask: Tensor  # (B, 1, 16, 16) logits of the object's cover
    category: Tensor  # (B, trained categories) logits
    colour: Tensor  # (B, colours) logits of the main colour
    second_colour: Tensor  # (B, colours and none) logits of the pattern's colour, else the accent's
    pattern: Tensor  # (B, patterns) logits
    background: Tensor  # (B, backgrounds) logits
    identity: Tensor  # (B, 64) unit embedding of the object
    present: Tensor  # (B, all categories) logits of whether the scene has such an object; for scenes with two objects


def _convolution(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation)
    return nn.Sequential(convolution, nn.GroupNorm(8, outputs), nn.GELU())


def _pool(features: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean (B, C) over the picture."""
    return (features * weight).sum((2, 3)) / weight.sum((2, 3)).clamp(min=1e-3)


def _statistics(features: Tensor, cover: Tensor) -> Tensor:
    """Mean, standard deviation and largest value (B, 3 C) of features (B, C, H, W) on the object."""
    height, width = features.shape[-2:]
    features, weight = features.float(), F.adaptive_avg_pool2d(cover, (height, width))
    mean = _pool(features, weight)
    variance = _pool((features - mean[:, :, None, None]).square(), weight)
    return torch.cat([mean, (variance + 1e-5).sqrt(), (features * (weight > 0.5)).amax((2, 3))], 1)


class Judge(ModelMixin, ConfigMixin):
    """A convolutional network over the scene and a classifier of the object's crop."""

    @register_to_config
    def __init__(self, width: int = 96, crop_size: int = 48, identity: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(3, 32, 2), _convolution(32, 64, 2), _convolution(64, width))
        self.context = nn.ModuleList([_convolution(width, width, dilation=d) for d in (1, 2, 4, 1)])
        self.mask_head = nn.Conv2d(width, 1, 1)
        self.presence_head = nn.Conv2d(width, len(CATEGORIES), 1)
        self.background_head = nn.Linear(width, len(BACKGROUNDS))
        self.crop_fine = nn.Sequential(_convolution(3, 32), _convolution(32, 64, 2), _convolution(64, 64))
        self.crop_middle = nn.Sequential(_convolution(64, 96, 2), _convolution(96, 96))
        self.crop_coarse = nn.Sequential(_convolution(96, 128, 2), nn.Flatten(), nn.Dropout(0.2))
        self.surface = nn.Sequential(nn.Linear(3 * (64 + 96), 128), nn.GELU(), nn.Linear(128, 128), nn.GELU())
        crop_width = 128 * (crop_size // 8) ** 2
        self.category_head = nn.Linear(crop_width, len(TRAINED_CATEGORIES))
        self.colour_head = nn.Linear(crop_width + 128, len(COLOUR_NAMES))
        self.second_colour_head = nn.Linear(128, len(SECOND_COLOUR_NAMES))
        self.pattern_head = nn.Linear(crop_width + 128, len(PATTERN_NAMES))
        self.identity_head = nn.Sequential(nn.Linear(2 * width, 128), nn.GELU(), nn.Linear(128, identity))

    def forward(self, image: Tensor, mask: Tensor | None = None, given: Tensor | None = None) -> Verdict:
        """Judge pictures.

        Args:
            image: (B, 3, H, W) in [-1, 1].
            mask: (B, 1, H / 4, W / 4), replaces the predicted cover of the object.
            given: (B,), the rows in which `mask` is used; all when None.
        """
        local = self.stem(image)
        features = local
        for layer in self.context:
            features = features + layer(features)
        logits = self.mask_head(features)
        cover = logits.sigmoid().detach()
        if mask is not None:
            cover = mask if given is None else torch.where(given[:, None, None, None], mask, cover.float())
        crop, surface = self._describe_crop(image, cover.float())
        both = torch.cat([crop, surface], 1)
        described = torch.cat([_pool(features, cover), _pool(local, cover)], 1)
        return Verdict(
            mask=logits.float(),
            category=self.category_head(crop).float(),
            colour=self.colour_head(both).float(),
            second_colour=self.second_colour_head(surface).float(),
            pattern=self.pattern_head(both).float(),
            background=self.background_head(_pool(features, 1 - cover)).float(),
            identity=F.normalize(self.identity_head(described).float(), dim=-1),
            present=self.presence_head(features).float().flatten(2).logsumexp(2),
        )

    def _describe_crop(self, image: Tensor, cover: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the object's crop with their places (B, C), and of its surface wherever they are (B, 128)."""
        size = self.config["crop_size"]
        fine = self.crop_fine(crop_around(image, cover, size))
        middle = self.crop_middle(fine)
        inside = crop_around(cover, cover, size)
        surface = self.surface(torch.cat([_statistics(fine, inside), _statistics(middle, inside)], 1))
        return self.crop_coarse(middle), surface


class JudgeModule(nn.Module):
    """Judge with its losses."""

    def __init__(self) -> None:
        super().__init__()
        self.judge = Judge()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss and its parts; pictures 2i and 2i + 1 show the same instance."""
        cover = F.avg_pool2d(batch["mask"], 4)
        image = batch["image"]
        with mixed_precision(image.device):
            verdict: Verdict = self.judge(image, cover, batch["given_mask"])
        alone = ~batch["crowded"][:, None, None, None]  # with two objects, the picture does not determine the subject
        mask_error = F.binary_cross_entropy_with_logits(verdict.mask, cover, reduction="none")
        losses = {
            "mask": (mask_error * alone).sum() / alone.sum().clamp(min=1) / cover[0].numel(),
            "present": 3 * F.binary_cross_entropy_with_logits(verdict.present, batch["present"]),
            "category": F.cross_entropy(verdict.category, batch["category"], ignore_index=_IGNORED),
            "colour": 0.5 * F.cross_entropy(verdict.colour, batch["colour"]),
            "second_colour": 0.5 * F.cross_entropy(verdict.second_colour, batch["second_colour"]),
            "pattern": F.cross_entropy(verdict.pattern, batch["pattern"]),
            "background": F.cross_entropy(verdict.background, batch["background"]),
            "identity": instance_loss(verdict.identity[::2], verdict.identity[1::2], batch["instance"]),
        }
        return {"loss": sum(losses.values(), start=cover.new_zeros(())), **{k: v.detach() for k, v in losses.items()}}


def _presence(category: NDArray[np.int64], neighbour: NDArray[np.int64]) -> Tensor:
    """The categories (B, all) in each scene; `neighbour` is -1 where there is none."""
    present = torch.zeros(len(category), len(CATEGORIES) + 1)
    rows = torch.arange(len(category))
    present[rows, torch.from_numpy(category)] = 1
    present[rows, torch.from_numpy(neighbour)] = 1  # -1 marks the spare last column
    return present[:, :-1]


@dataclass(frozen=True, kw_only=True)
class JudgeTask:
    """Judge training on a pool of all categories; noise and blur prevent it from using rendering artefacts."""

    pool_folder: str
    recipe: PartRecipe

    def module(self) -> JudgeModule:
        """Build a judge, initialised from the recipe's seed."""
        torch.manual_seed(self.recipe.seed)
        return JudgeModule()

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """Pairs of noisy views; every third step they are blurred as by the autoencoder."""
        pool, recipe = open_pool(Path(self.pool_folder)), self.recipe
        first = draw_indices(recipe.seed, step, rank, world, len(pool), recipe.batch)
        index = np.stack([first, pool.partner(first)], 1).flatten()  # the two views of an instance alternate
        generator = seeded_generator(recipe.seed, step, rank)
        image = images_at(pool, index)
        strength = 0.05 * torch.rand(len(image), 1, 1, 1, generator=generator)
        image = image + strength * torch.randn(image.shape, generator=generator)
        if step % 3 == 0:
            image = F.interpolate(F.avg_pool2d(image, 2), image.shape[-1], mode="bilinear")
        classes = torch.tensor(
            [TRAINED_CATEGORIES.index(c) if c in TRAINED_CATEGORIES else _IGNORED for c in CATEGORIES]
        )
        crowded = torch.from_numpy(pool.neighbour[index] >= 0)
        return {
            "image": image,
            "mask": masks_at(pool, index),
            "category": classes[torch.from_numpy(pool.category[index])],
            "colour": torch.from_numpy(pool.colour[index]),
            "second_colour": torch.from_numpy(pool.second_colour[index]),
            "pattern": torch.from_numpy(pool.pattern[index]),
            "background": torch.from_numpy(pool.background[index]),
            "instance": torch.from_numpy(first // 2),
            "present": _presence(pool.category[index], pool.neighbour[index]),
            "crowded": crowded,
            "given_mask": crowded | (torch.arange(len(image)) % 4 < 2),
        }

    def after_step(self, module: nn.Module, step: int) -> None:
        """Do nothing."""

    def export(self, module: nn.Module, folder: Path) -> None:
        """Save the judge as safetensors with its configuration."""
        assert isinstance(module, JudgeModule)
        module.judge.float().cpu().eval().save_pretrained(folder)
