"""Stable Diffusion's safety checker, as a score.

The checker of Stable Diffusion 1 compares CLIP's embedding of a picture with those of 17 refused concepts, each with
its own threshold, and of 3 more concepts that make it stricter (Rando et al., Red-Teaming the Stable Diffusion Safety
Filter, 2022, Sec. 2; `StableDiffusionSafetyChecker` in diffusers). It answers yes or no; this module turns its margin
into a score.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import Tensor, nn
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from model.errors import ModelError
from model.pretrained import load_pretrained
from model.scoring.metrics import PictureInput

SAFETY_THRESHOLD = 0.5  # of the score
_STRICTER = 0.01  # added to every margin when the picture shows one of the 3 concepts
_LOGIT_SCALE = 100.0  # of CLIP's cosines (Radford et al. 2021, Sec. 2.5)


class SafetyCheckerError(ModelError):
    """A source has no usable safety checker; the message says why."""


class SafetyScorer(nn.Module):
    """Scores in [0, 1], above 0.5 for a picture that the checker refuses.

    With the margin m = max_c (cos(picture, concept_c) - threshold_c), the score is sigmoid(100 m): the probability that
    CLIP, whose logits are 100 times the cosines, gives to the nearest concept against one that lies at its threshold.
    diffusers rounds margins to three digits before it compares them with 0; this does not.
    """

    def __init__(self, checker: StableDiffusionSafetyChecker) -> None:
        super().__init__()
        self.checker = checker.eval().requires_grad_(False)
        side = checker.config.vision_config.image_size
        self.picture_input = PictureInput(side=side, mean=tuple(OPENAI_CLIP_MEAN), std=tuple(OPENAI_CLIP_STD))

    @classmethod
    def from_pretrained(cls, name: str | Path) -> SafetyScorer:
        """Load the folder `safety_checker` of a Stable Diffusion in diffusers' layout: a hub id or a local folder.

        Raises:
            SafetyCheckerError: There is no checker, or only a pickled one, or its weights are incomplete.
        """
        try:
            checker, loading = load_pretrained(
                StableDiffusionSafetyChecker, name, "safety_checker", output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise SafetyCheckerError(f"the safety checker of {name} cannot be loaded: {reason}") from error
        if loading["missing_keys"]:
            raise SafetyCheckerError(f"the safety checker of {name} lacks the tensor {min(loading['missing_keys'])!r}.")
        return cls(checker.float())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.checker.concept_embeds.device

    @torch.no_grad()
    def forward(self, views: Tensor) -> Tensor:
        """Outputs (B, 3, H, W) of `picture_input` -> scores (B,)."""
        pooled = self.checker.vision_model(pixel_values=views.to(self.device)).pooler_output
        picture = F.normalize(self.checker.visual_projection(pooled), dim=-1)
        special = self._margins(picture, self.checker.special_care_embeds, self.checker.special_care_embeds_weights)
        margins = self._margins(picture, self.checker.concept_embeds, self.checker.concept_embeds_weights)
        stricter = _STRICTER * (special > 0).any(1)
        return torch.sigmoid(_LOGIT_SCALE * (margins.amax(1) + stricter))

    @staticmethod
    def _margins(picture: Tensor, concepts: Tensor, thresholds: Tensor) -> Tensor:
        """Unit embeddings (B, D), concepts (C, D), thresholds (C,) -> cosines minus thresholds (B, C)."""
        return picture @ F.normalize(concepts, dim=-1).T - thresholds
