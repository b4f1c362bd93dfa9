"""One backbone paints all arms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.backbone import Backbone, load_backbone
from model.concepts.concept import Concept, ConceptToken
from model.concepts.folder import write_concept
from model.concepts.loading import load_concept
from model.concepts.model_parts import ModelParts
from model.pipeline import RealCustomPipeline
from stages.evaluate.models import ModelPaths, Models
from tests.support.contexts import make_context

_PROMPT = "a photo of a [v] mug in the snow"


def token(backbone: Backbone) -> ConceptToken:
    width = ModelParts.of(backbone).widths[0]
    return ConceptToken(placeholder="[v]", word="mug", subject="mug", embeddings=(torch.ones(1, width),))


def layered_token(backbone: Backbone) -> ConceptToken:
    """With an embedding of its own for each cross-attention layer (XTI)."""
    width, names = ModelParts.of(backbone).widths[0], list(ModelParts.of(backbone).keys_values())
    layers = {name: (torch.full((1, width), float(number)),) for number, name in enumerate(names)}
    return ConceptToken(placeholder="[v]", word="mug", subject="mug", embeddings=(), layer_embeddings=layers)


def changed_attention(backbone: Backbone) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    pairs = ModelParts.of(backbone).keys_values().items()
    return {name: (key.weight.detach() * 3, value.weight.detach() * 3) for name, (key, value) in pairs}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vector", "layers", "attention"])
def test_a_concept_is_painted_as_by_a_backbone_of_its_own(kind: str, weights: dict[str, Path], tmp_path: Path) -> None:
    plain = load_backbone(weights["base"] / "backbone")
    own = layered_token(plain) if kind == "layers" else token(plain)
    attention = changed_attention(plain) if kind == "attention" else {}
    concept = Concept(method="xti", backbone="", tokens=(own,), cross_attention=attention)
    write_concept(tmp_path / "concept", concept)
    config = make_context(tmp_path).config
    paths = ModelPaths(backbone=str(weights["base"] / "backbone"), adapter=weights["train_adapter"] / "adapter")
    models, settings = Models(config, paths), config.inference.with_steps(2)

    def pixels(pipeline: RealCustomPipeline, prompt: str) -> NDArray[np.uint8]:
        return np.asarray(pipeline(prompt, settings=settings).images[0])

    before = pixels(models.pipeline, "a photo of a mug in the snow")
    with models.concept(str(tmp_path / "concept")):
        painted = pixels(models.pipeline, _PROMPT)
    assert np.array_equal(pixels(models.pipeline, "a photo of a mug in the snow"), before)
    load_concept(plain, tmp_path / "concept")
    assert np.array_equal(pixels(RealCustomPipeline(plain), _PROMPT), painted)
    assert not np.array_equal(painted, before)
