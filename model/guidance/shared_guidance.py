"""The subjects of several generations whose steps share passes of the UNet.

Legend of shapes: as in `model.guidance.generation_branch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from model.adapters.visual_attention import VisualCondition
from model.guidance.denoising import Guidance, SubjectGuidance
from model.guidance.generation_branch import DenoisingStep
from model.guidance.guidance_branch import GuidanceRecorder


class SharedGuidance(Guidance):
    """The rows of several `SubjectGuidance`s with equal pass keys, each at its own step.

    Args:
        parts: Of the generations.
        steps: Theirs.
    """

    def __init__(self, parts: Sequence[SubjectGuidance], steps: Sequence[DenoisingStep]) -> None:
        self._parts = list(zip(parts, steps, strict=True))
        self._rows = [len(step.latents) for step in steps]

    def acts(self, step: int) -> bool:
        """All of them take part in their steps."""
        return True

    def is_guided(self, step: int) -> bool:
        """See `Guidance.is_guided`; it is the same for all, at their own steps."""
        part, own = self._parts[0]
        return part.is_guided(own.number)

    def recorder(self, *, ends_pass: bool) -> GuidanceRecorder:
        """See `Guidance.recorder`. Pictures with fewer subjects are padded."""
        recorders = [part.recorder(ends_pass=ends_pass) for part, _ in self._parts]
        indicators = [recorder.indicator for recorder in recorders]
        subjects = max(indicator.shape[2] for indicator in indicators)
        padded = torch.cat([F.pad(indicator, (0, subjects - indicator.shape[2])) for indicator in indicators])
        return replace(recorders[0], indicator=padded)

    def find_masks(self, maps: Tensor) -> None:
        """See `Guidance.find_masks`."""
        for (part, _), own in zip(self._parts, maps.split(self._rows), strict=True):
            part.find_masks(own[..., : part.subjects])

    def extrapolate_masks(self, step: int) -> None:
        """See `Guidance.extrapolate_masks`, each at its own step."""
        for part, own in self._parts:
            part.extrapolate_masks(own.number)

    def conditions(self, step: DenoisingStep) -> list[VisualCondition]:
        """See `Guidance.conditions`. A picture with fewer references than others has some that act nowhere."""
        conditions = [part.conditions(own) for part, own in self._parts]
        references = max(map(len, conditions))
        filled = [own + [own[0].nowhere()] * (references - len(own)) for own in conditions]
        return [VisualCondition.cat(of_slot) for of_slot in zip(*filled, strict=True)]
