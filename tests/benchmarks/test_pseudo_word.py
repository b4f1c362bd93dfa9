"""The regularised pseudo-word: its loss, its measures and its table."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from model.backbone import load_backbone
from model.concepts.concept import Concept, ConceptToken
from model.concepts.folder import write_concept
from model.concepts.loading import load_concept
from model.micro_sd.weights import WEIGHTS_FOLDER
from tests.benchmarks.pseudo_word import (
    REGULARIZATIONS,
    SCORES,
    Budget,
    Regularization,
    table,
    train_pseudo_word,
    words_similarity,
)
from tests.benchmarks.support.concept_training import AlbumSubject
from tests.support.subject_folder import png

BUDGET = Budget(subjects=1, prompts=1, steps=3, painting_steps=1, seed=0)


@pytest.mark.parametrize(
    ("towards", "weight", "expected"), [("zero", 0.0, 0.0), ("zero", 0.5, 1.5), ("noun", 0.5, 1.0), ("noun", 0.0, 0.0)]
)
def test_the_l1_distance(towards: str, weight: float, expected: float) -> None:
    vector, noun = torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0, 0.0]])
    assert float(Regularization(towards, weight)(vector, noun)) == expected


def test_results_of_different_regularizations_have_different_folders() -> None:
    assert len({one.name for one in REGULARIZATIONS}) == len(REGULARIZATIONS)


def test_the_norm_falls_with_lambda(tmp_path: Path) -> None:
    subject = AlbumSubject(name="a mug", word="mug", album=(png(0),), views=())
    config = BUDGET.config()
    free, held = (
        train_pseudo_word(subject, Regularization("zero", weight), config, tmp_path / str(weight))
        for weight in (0.0, 10.0)
    )
    assert held < free


def test_a_pseudo_word_that_is_the_noun_changes_no_word(tmp_path: Path) -> None:
    backbone = load_backbone(str(WEIGHTS_FOLDER))
    row = backbone.tokenizers[0].convert_tokens_to_ids("mug")
    table_of_tokens = backbone.text_encoders[0].get_input_embeddings().weight.detach()
    token = ConceptToken(
        placeholder="[v]", word="mug", subject="a mug", embeddings=(table_of_tokens[row][None].clone(),)
    )
    write_concept(tmp_path / "mug", Concept(method="textual_inversion", backbone="micro", tokens=(token,)))
    load_concept(backbone, tmp_path / "mug")
    assert words_similarity(backbone, "mug") == pytest.approx(1, abs=1e-5)
    assert words_similarity(backbone, "duck") < 0.999


def test_the_table_compares_with_lambda_0() -> None:
    results = {
        one: {str(number): dict.fromkeys([*SCORES, "norm"], number + one.weight) for number in range(3)}
        for one in (Regularization("zero", 0.0), Regularization("noun", 0.5))
    }
    lines = table(results).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("|  | 0 | 1.0 | 1.00 (")
    assert lines[3].startswith("| distance of S* from the noun | 0.5 | 1.5 |")
    assert lines[3].endswith("| +0.50 (+0.50 to +0.50) |")


def test_the_budget_is_that_of_one_vector_without_the_mlm_loss() -> None:
    own = dataclasses.replace(BUDGET, steps=7).config().customize
    assert (own.vectors, own.mlm, own.steps) == (1, False, 7)
