"""The scores of a concept on a backbone of random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model.backbone import Backbone, load_backbone
from model.concepts.concept import Concept, ConceptToken
from model.concepts.folder import write_concept
from model.concepts.model_parts import ModelParts
from stages.customize.painting_task import Device
from stages.customize.scores import Scored, ScoringJob, score_concept
from tests.support.contexts import make_context
from tests.support.subject_folder import png

SCORING = {"prompts": 3, "seeds": 2, "steps": 2}


def token(backbone: Backbone, embedding: torch.Tensor | None = None) -> ConceptToken:
    """A token with this embedding (1, c), by default of ones."""
    if embedding is None:
        embedding = torch.ones(1, ModelParts.of(backbone).widths[0])
    return ConceptToken(placeholder="[v]", word="toy", subject="one", embeddings=(embedding.detach(),))


def changed_attention(backbone: Backbone) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of all cross-attention layers, larger than they were."""
    return {
        name: (key.weight.detach() * 3, value.weight.detach() * 3)
        for name, (key, value) in ModelParts.of(backbone).keys_values().items()
    }


def score(tmp_path: Path, location: Path, *concepts: Concept) -> tuple[list[str], Scored]:
    """The notes and the scores of concepts, of which each is a checkpoint."""
    for number, concept in enumerate(concepts, 1):
        write_concept(tmp_path / str(number), concept)
    job = ScoringJob(
        config=make_context(tmp_path, customize={"scoring": SCORING}, evaluate={"batch_size": 4}).config,
        backbone=str(location),
        device=Device("cpu", torch.float32),
        word="toy",
        placeholder="[v]",
        pictures=(png(1), png(2)),
        checkpoints={10 * number: str(tmp_path / str(number)) for number in range(1, len(concepts) + 1)},
    )
    *notes, scored = score_concept(job)
    assert isinstance(scored, Scored)
    return [str(note) for note in notes], scored


@pytest.mark.slow
def test_all_arms_have_the_same_prompts_and_noise(tmp_path: Path, backbone: Path) -> None:
    loaded = load_backbone(backbone / "backbone")
    start = loaded.text_encoders[0].get_input_embeddings().weight[loaded.tokenizers[0]("toy").input_ids[1]][None]
    same = Concept(method="", backbone="", tokens=(token(loaded, start),))
    other = Concept(method="", backbone="", tokens=(token(loaded),))
    notes, scored = score(tmp_path, backbone / "backbone", other, same)
    assert notes == [
        "loading the backbone",
        *(f"painting toy, {done} of 6 pictures" for done in (0, 4)),
        *(f"painting [v] toy of step 10, {done} of 6 pictures" for done in (0, 4)),
        *(f"painting [v] toy of step 20, {done} of 6 pictures" for done in (0, 4)),
        "painting toy with the concept loaded, 0 of 1 pictures",
    ]
    assert len(scored.prompts) == 6
    assert len(set(scored.prompts)) == 3
    assert all("toy" in prompt and "[v]" not in prompt for prompt in scored.prompts)
    assert sorted(scored.checkpoints) == [10, 20]
    assert scored.checkpoints[10].similarity != scored.word.similarity
    assert [len(samples) for samples in scored.samples.values()] == [4, 4, 4]
    assert scored.verdict.drift is None
    assert "no weight was trained" not in scored.verdict.sentence


@pytest.mark.slow
def test_weights_that_change_are_seen_in_the_class_word(tmp_path: Path, backbone: Path) -> None:
    loaded = load_backbone(backbone / "backbone")
    concept = Concept(method="", backbone="", tokens=(token(loaded),), cross_attention=changed_attention(loaded))
    _, scored = score(tmp_path, backbone / "backbone", concept)
    assert scored.verdict.drift is not None
    assert scored.verdict.loss is not None
    first, last = (np.asarray(samples[0], dtype=int) for samples in scored.samples.values())
    assert np.abs(first - last).max() > 2
