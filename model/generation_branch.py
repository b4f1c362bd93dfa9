"""The generation branch (RealCustom++ Secs. III-D2 and III-E, Eqs. 14, 17): what the references add, and where.

Legend of shapes: as in `model.mask_guidance`; K references of a picture, C the width of a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.adapter import RealCustomPlusAdapter
from model.image_encoder import ImageEncoders
from model.mask_guidance import Grid, layer_regions
from model.subjects import References, Subject
from model.visual_attention import VisualCondition

KeysValues = dict[str, tuple[Tensor, Tensor]]  # layer -> K_i, V_i, each (B, n, C)


@dataclass(frozen=True)
class GenerationBranch:
    """The references of a batch of pictures, encoded once for all steps."""

    keys_values: list[KeysValues]  # of each of the K references
    strengths: Tensor  # (B, S, K), of each subject's mask for each reference

    @classmethod
    def of(
        cls, adapter: RealCustomPlusAdapter, encoders: ImageEncoders, subjects: Sequence[Sequence[Subject]]
    ) -> "GenerationBranch":
        """Encode the references of each picture's subjects, every distinct picture once."""
        references = References.of(subjects)
        features = encoders.encode(references.pictures).to(adapter.device, adapter.dtype)
        once = adapter(features).keys_values
        rows = torch.tensor(references.of_prompt).T  # (K, B)
        strengths = torch.zeros(len(subjects), max(len(of_prompt) for of_prompt in subjects), len(rows))
        for row, of_prompt, shown in zip(strengths, subjects, references.of_subject, strict=True):
            for place, (subject, reference) in enumerate(zip(of_prompt, shown, strict=True)):
                assert subject.scale is not None
                row[place, reference] = subject.scale
        keys_values = [{layer: (key[of], value[of]) for layer, (key, value) in once.items()} for of in rows]
        return cls(keys_values, strengths.to(adapter.device))

    def everywhere(self) -> list[VisualCondition]:
        """Every reference acts on the whole picture."""
        totals = self.strengths.sum(1)  # (B, K)
        return [
            VisualCondition(pairs, scale=scale[:, None, None])
            for pairs, scale in zip(self.keys_values, totals.unbind(-1), strict=True)
        ]

    def inside(self, masks: Tensor, latent: Grid, grid: Grid, downscales: Sequence[int]) -> list[VisualCondition]:
        """Every reference acts inside the masks of its subjects.

        Eq. 17 sums over the subjects. The sum is taken over their masks where they share a reference, which is the
        same and needs its attention once.

        Args:
            masks: M_hat (B, N, S).
            latent: size of the latent.
            grid: G, G' of the masks.
            downscales: of all cross-attention layers.
        """
        weights = (masks @ self.strengths.to(masks.dtype)).transpose(1, 2).unflatten(2, grid)  # (B, K, G, G')
        return [
            VisualCondition(pairs, layer_regions(mask, latent, downscales))
            for pairs, mask in zip(self.keys_values, weights.unbind(1), strict=True)
        ]
