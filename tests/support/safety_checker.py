"""A small random safety checker, and pictures some of which it refuses."""

from __future__ import annotations

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import Tensor
from transformers import CLIPConfig

SIDE, WIDTH, PICTURES = 16, 12, 60


def small_checker() -> StableDiffusionSafetyChecker:
    """With thresholds that some of `views()` exceed."""
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = vision | {"vocab_size": 20, "max_position_embeddings": 8}
    vision |= {"image_size": SIDE, "patch_size": 8}
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(vision_config=vision, text_config=text, projection_dim=WIDTH)
    ).eval()
    with torch.no_grad():
        for parameter in checker.vision_model.embeddings.parameters():
            parameter.mul_(20)  # so that pictures differ
        for concepts, thresholds, share in (
            (checker.concept_embeds, checker.concept_embeds_weights, 0.97),
            (checker.special_care_embeds, checker.special_care_embeds_weights, 0.8),
        ):
            concepts.copy_(torch.randn(concepts.shape))
            thresholds.copy_(torch.from_numpy(np.quantile(cosines(checker, concepts), share, axis=0)))
    return checker


def views() -> Tensor:
    return torch.randn(PICTURES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def cosines(checker: StableDiffusionSafetyChecker, concepts: Tensor) -> np.ndarray:
    """One picture and one concept at a time: (PICTURES, concepts)."""
    with torch.no_grad():
        pictures = [checker.visual_projection(checker.vision_model(view[None])[1])[0].numpy() for view in views()]
    found = [
        [picture @ concept / np.linalg.norm(picture) / np.linalg.norm(concept) for concept in concepts.detach().numpy()]
        for picture in pictures
    ]
    return np.array(found, np.float32)
