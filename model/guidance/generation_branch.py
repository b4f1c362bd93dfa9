"""The generation branch: what the references add, and where (RealCustom Sec. 3.3, RealCustom++ Secs. III-D2, III-E).

Each method has its own branch, in `model.methods`.

Legend of shapes: as in `model.guidance.masks`; K references of a picture, C the width of a layer.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from model.adapters.visual_attention import KeysValues, Region, VisualCondition
from model.guidance.masks import Grid, Interpolation, layer_regions
from model.guidance.subjects import References, Subject


@dataclass(frozen=True)
class DenoisingStep:
    """The input of a denoising step."""

    number: int
    timestep: Tensor  # (), or (B,) for rows at different timesteps
    latents: Tensor  # z_t (B, 4, h, w), the UNet's input
    alpha_bar: Tensor  # (B,), of the timestep
    text: Tensor  # f_ct (B, n_t, c_t)


@dataclass(frozen=True)
class SubjectMasks:
    """The masks of a picture's subjects, and the regions in which each reference acts."""

    masks: Tensor  # M_hat (B, N, S)
    grid: Grid  # G, G'
    regions: list[dict[int, Region]]  # of each of the K references


@dataclass(frozen=True)
class GenerationBranch(ABC):
    """The references of a batch of pictures, encoded once for all steps."""

    strengths: Tensor  # (B, S, K), of each subject for each reference; 0 for the references of other subjects
    mask_interpolation: ClassVar[Interpolation] = "area"  # to the grids of the layers

    @property
    @abstractmethod
    def keys(self) -> int:
        """n, the keys of a reference in its widest layer."""

    @property
    def unconditional(self) -> KeysValues | None:
        """Keys and values (1, n, C) in the place of each reference in the unconditional rows; None: none act there."""
        return None

    @abstractmethod
    def keys_values(self, step: DenoisingStep, masks: SubjectMasks | None) -> list[KeysValues]:
        """Keys and values of each of the K references at a step."""

    def conditions(self, step: DenoisingStep, masks: SubjectMasks | None) -> list[VisualCondition]:
        """What the UNet's cross-attention takes as `visual` at a step; without masks references act everywhere.

        RealCustom++ Eq. 17 sums over the subjects. Subjects that share a reference are summed over their masks instead:
        the result is the same, and the reference's attention is computed once.
        """
        keys_values = self.keys_values(step, masks)
        if masks is not None:
            pairs = zip(keys_values, masks.regions, strict=True)
            return [VisualCondition(own, regions, unconditional=self.unconditional) for own, regions in pairs]
        totals = self.strengths.sum(1).unbind(-1)  # K times (B,)
        return [
            VisualCondition(own, scale=total[:, None, None], unconditional=self.unconditional)
            for own, total in zip(keys_values, totals, strict=True)
        ]

    def subject_masks(self, masks: Tensor, latent: Grid, grid: Grid, downscales: Sequence[int]) -> SubjectMasks:
        """Let each reference act inside the masks of its subjects, times their strengths.

        Args:
            masks: M_hat (B, N, S).
            latent: size of the latent.
            grid: G, G' of the masks.
            downscales: of all cross-attention layers.
        """
        weights = (masks @ self.strengths.to(masks.dtype)).transpose(1, 2).unflatten(2, grid)  # (B, K, G, G')
        regions = [layer_regions(mask, latent, downscales, self.mask_interpolation) for mask in weights.unbind(1)]
        return SubjectMasks(masks, grid, regions)


def reference_strengths(subjects: Sequence[Sequence[Subject]], references: References) -> Tensor:
    """The strength of each subject for each reference of its picture: (B, S, K)."""
    slots = len(references.of_prompt[0])
    strengths = torch.zeros(len(subjects), max(len(of_prompt) for of_prompt in subjects), slots)
    for row, of_prompt, own in zip(strengths, subjects, references.of_subject, strict=True):
        for index, (subject, reference) in enumerate(zip(of_prompt, own, strict=True)):
            assert subject.scale is not None
            row[index, reference] = subject.scale
    return strengths
