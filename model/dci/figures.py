"""The experiments and pictures of the paper's figures (Customized Generation Reimagined, Figs. 9-12).

Each function of settings returns the calls of the pipeline that a figure compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from PIL import Image
from torch import Tensor

from model.dci.settings import Ablation, DCISettings
from model.pictures.tensors import mask_picture

_ABLATIONS: dict[str, Ablation | None] = {
    "DCI": None,
    "w/o mask": "no_mask",
    "w/o entire prompt": "no_entire_prompt",
    "w/o deep aggregation": "no_deep_aggregation",
}


def injection_strengths(settings: DCISettings, strengths: Iterable[float]) -> dict[float, DCISettings]:
    """Fig. 9: lambda -> its settings."""
    return {strength: replace(settings, injection_strength=strength) for strength in strengths}


def ablations(settings: DCISettings) -> dict[str, DCISettings]:
    """Fig. 10: the method and its three ablations, by the paper's names."""
    return {name: replace(settings, ablation=ablation) for name, ablation in _ABLATIONS.items()}


def aggregation_mask_pictures(masks: Mapping[int, Tensor], side: int) -> dict[int, Image.Image]:
    """Fig. 11: the auxiliary branch's aggregation mask at each scale, the mean over the steps; bright: a high weight.

    Args:
        masks: of one picture, downscale -> (steps, G, G').
        side: of the pictures at least, pixels.

    Returns:
        The latent's size divided by that of the grid -> its picture, from fine to coarse.
    """
    return {downscale: mask_picture(masks[downscale].mean(0)[None], side) for downscale in sorted(masks)}


def noun_replacements(settings: DCISettings, nouns: Iterable[str]) -> dict[str, DCISettings]:
    """Fig. 12: auxiliary noun -> its settings."""
    return {noun: replace(settings, auxiliary_noun=noun) for noun in nouns}
