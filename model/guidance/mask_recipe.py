"""How the subjects of a request share the picture: made once for a request, applied to the maps of every step.

Legend of shapes: as in `model.guidance.masks`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from model.adapters.visual_attention import VisualAttentionProcessor
from model.backbone import Backbone
from model.errors import GenerationError
from model.guidance.guidance_branch import GuidanceLayers
from model.guidance.masks import (
    Grid,
    grid_at,
    normalize_by_maximum,
    select_top,
    token_indicator,
    top_count,
)
from model.guidance.schedule import MaskSchedule
from model.guidance.settings import InferenceSettings, MaskNormalization
from model.guidance.subjects import Subject
from model.pictures.tensors import to_tensor


@dataclass(frozen=True)
class MaskRecipe:
    """Makes the masks of all subjects: from the guidance branch's maps, or from masks that the user gives."""

    layers: GuidanceLayers
    indicator: Tensor  # (B, n_t, S), 1 at the tokens of each subject's word
    counts: list[list[int]]  # the number of positions that each subject takes; 0: the user gives its mask
    given: Tensor  # (B, N, S), the user's masks, zeros for the other subjects
    binary: bool = False  # 1 at every selected position, instead of its entry over the maximum (an ablation)
    normalization: MaskNormalization = "max_norm"  # of the layers' maps

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        layers: GuidanceLayers,
        prompts: Sequence[str],
        subjects: Sequence[Sequence[Subject]],
        size: tuple[int, int],
        binary: bool = False,
        normalization: MaskNormalization = "max_norm",
    ) -> MaskRecipe:
        """The recipe of a request.

        Args:
            backbone: its tokenizer finds the words.
            layers: the layers that make the maps.
            prompts: B prompts.
            subjects: of each prompt, with their scopes.
            size: height and width of the pictures, pixels.
            binary: see the class.
            normalization: see the class.

        Raises:
            GenerationError: a subject has no word, or a word that is not in the prompt (the message lists the prompt's
                words); words overlap, scopes are too large, or a given mask does not fit.
        """
        grid = grid_at((size[0] // backbone.latent_scale, size[1] // backbone.latent_scale), layers.largest)
        positions = [_positions(backbone, *pair) for pair in zip(prompts, subjects, strict=True)]
        given = torch.zeros(len(prompts), math.prod(grid), max(len(of_prompt) for of_prompt in subjects))
        for row, of_prompt in zip(given, subjects, strict=True):
            for index, subject in enumerate(of_prompt):
                if subject.mask is not None:
                    row[:, index] = _at_grid(subject.mask, subject.word, size, grid)
        free = (given == 0).all(-1).sum(1).tolist()
        counts = [_counts(of_prompt, left, math.prod(grid)) for of_prompt, left in zip(subjects, free, strict=True)]
        indicator = token_indicator(positions, backbone.tokenizers[0].model_max_length)
        return cls(layers, indicator.to(backbone.device), counts, given.to(backbone.device), binary, normalization)

    @property
    def needs_maps(self) -> bool:
        """Whether the guidance branch has to run."""
        return any(any(of_picture) for of_picture in self.counts)

    def masks(self, maps: Tensor) -> Tensor:
        """M_hat of every subject (RealCustom++ Algorithm 1, Eqs. 13, 16): M (B, N, S) -> (B, N, S) in [0, 1]."""
        selected = select_top(maps, self.counts, self._free)
        weights = (selected > 0).to(selected.dtype) if self.binary else normalize_by_maximum(selected)
        return weights + self.given

    @cached_property
    def _free(self) -> Tensor | None:
        """The positions outside all given masks (B, N); None: all positions."""
        return (self.given == 0).all(-1) if self.given.any() else None


def mask_plan(
    backbone: Backbone,
    processors: Sequence[VisualAttentionProcessor],
    prompts: Sequence[str],
    subjects: Sequence[Sequence[Subject]],
    steps: range,
    size: tuple[int, int],
    settings: InferenceSettings,
    use_mask: bool,
) -> tuple[MaskSchedule, MaskRecipe | None]:
    """In which of the subjects' steps masks are found, and how; without masks in none.

    Raises:
        GenerationError: see `MaskRecipe.of`, `GuidanceLayers.of` and `MaskSchedule.of`.
    """
    if not use_mask:
        return MaskSchedule(), None
    layers = GuidanceLayers.of(processors, settings.mask_cross_downscales, settings.mask_self_downscales)
    options = settings.mask_binary, settings.mask_normalization
    recipe = MaskRecipe.of(backbone, layers, prompts, subjects, size, *options)
    return MaskSchedule.of(steps, settings.mask_steps, settings.mask_every), recipe


def _positions(backbone: Backbone, prompt: str, subjects: Sequence[Subject]) -> list[list[int]]:
    """Token positions of each subject's word; empty for a subject with a mask and without a word."""
    if any(subject.word is None and subject.mask is None for subject in subjects):
        raise GenerationError("a subject has no word: its mask needs the word of the prompt that it stands for.")
    words = [subject.word for subject in subjects if subject.word is not None]
    if len(words) > len(prompt.split()):
        raise GenerationError(f"{len(words)} subjects for the {len(prompt.split())} words of the prompt {prompt!r}.")
    found = [[] if one.word is None else backbone.token_positions(prompt, one.word) for one in subjects]
    for (one, own), (other, others) in combinations(zip(subjects, found, strict=True), 2):
        if set(own) & set(others):
            raise GenerationError(
                f"the words {one.word!r} and {other.word!r} overlap in the prompt {prompt!r}; every subject needs "
                "its own words."
            )
    return found


def _counts(subjects: Sequence[Subject], free: int, positions: int) -> list[int]:
    """The number of positions that each subject takes."""
    counts = [top_count(one.scope or 0, positions) if one.mask is None else 0 for one in subjects]
    if sum(counts) > free:
        raise GenerationError(
            f"the scopes of a prompt's subjects add up to {sum(counts)} positions of the mask, but {free} are free; "
            "give them smaller scopes."
        )
    return counts


def _at_grid(mask: Image.Image, word: str | None, size: tuple[int, int], grid: Grid) -> Tensor:
    """A given mask, resized to the largest attention grid by area: (N,) in [0, 1]."""
    whose = f"the mask of {word!r}" if word is not None else "a subject's mask"
    if mask.size != (size[1], size[0]):
        width, height = mask.size
        raise GenerationError(f"{whose} has {height} x {width} pixels; the picture will have {size[0]} x {size[1]}.")
    weights = F.interpolate(to_tensor(mask.convert("L"))[None, :1], grid, mode="area").flatten()
    if not weights.any():
        raise GenerationError(f"{whose} is entirely black; the subject may be where it is white.")
    return weights
