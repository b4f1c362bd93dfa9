"""The safety score of a small random checker, compared with diffusers' own verdict and with its definition."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file

from model.scoring.safety import SafetyCheckerError, SafetyScorer
from tests.support.safety_checker import PICTURES, SIDE, cosines, small_checker, views


def save(checker: StableDiffusionSafetyChecker, folder: Path) -> Path:
    checker.save_pretrained(folder / "safety_checker")
    return folder


def test_the_score_exceeds_a_half_for_pictures_that_diffusers_refuses() -> None:
    checker = small_checker()
    scores = SafetyScorer(checker)(views())
    _, refused = checker(views(), [np.zeros((1, 1, 3)) for _ in range(PICTURES)])
    clear = (scores - 0.5).abs() > 0.03  # elsewhere diffusers' rounding decides
    assert clear.sum() > PICTURES / 2
    assert (scores > 0.5)[clear].tolist() == torch.tensor(refused)[clear].tolist()
    assert 0 < sum(refused) < PICTURES


def test_the_score_equals_its_definition() -> None:
    checker = small_checker()
    concepts, special = (cosines(checker, kind) for kind in (checker.concept_embeds, checker.special_care_embeds))
    limits, special_limits = (
        weights.detach().numpy() for weights in (checker.concept_embeds_weights, checker.special_care_embeds_weights)
    )
    scores = SafetyScorer(checker)(views()).tolist()
    stricter = 0
    for number, score in enumerate(scores):
        margin = max(float(cosine - limit) for cosine, limit in zip(concepts[number], limits, strict=True))
        if any(cosine - limit > 1e-6 for cosine, limit in zip(special[number], special_limits, strict=True)):
            margin, stricter = margin + 0.01, stricter + 1
        assert score == pytest.approx(1 / (1 + math.exp(-100 * margin)), abs=1e-3)
    assert 0 < stricter < PICTURES


def test_a_checker_with_the_published_tensor_names_loads(tmp_path: Path) -> None:
    """The published files were saved when a CLIPVisionModel still contained a `vision_model`."""
    checker = small_checker()
    file = save(checker, tmp_path) / "safety_checker" / "model.safetensors"
    published = {
        re.sub(r"^(vision_model\.)+", "vision_model.vision_model.", name): tensor
        for name, tensor in load_file(file).items()
    }
    assert "vision_model.vision_model.embeddings.class_embedding" in published
    save_file(published, file, metadata={"format": "pt"})
    loaded = SafetyScorer.from_pretrained(tmp_path)
    assert loaded.picture_input.side == SIDE
    assert torch.equal(loaded(views()), SafetyScorer(checker)(views()))


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SafetyCheckerError, match="cannot be loaded") as caught:
        SafetyScorer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    file = save(small_checker(), tmp_path) / "safety_checker" / "model.safetensors"
    tensors = load_file(file)
    del tensors["concept_embeds_weights"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(SafetyCheckerError, match="lacks the tensor 'concept_embeds_weights'"):
        SafetyScorer.from_pretrained(tmp_path)
    torch.save(tensors, file.with_name("pytorch_model.bin"))
    file.unlink()
    with pytest.raises(SafetyCheckerError, match="cannot be loaded"):
        SafetyScorer.from_pretrained(tmp_path)
