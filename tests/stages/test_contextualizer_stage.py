"""The contextualizer stage: its split, and the whole stage on a handful of prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.concepts.contextualizer import Contextualizer
from stages.contextualizer import stage as contextualizer
from tests.support.contexts import make_context
from tests.support.prompt_sets import write_prompts
from tests.support.random_backbone import write_random_backbone

TRAINER = {"workers": 2, "checkpoint_every": 100}


def test_prompts_lose_their_placeholder_and_are_split_by_their_sentences() -> None:
    """The sentence around the concept decides, so that a held-out sentence is new whatever it is about."""
    concepts = ("toy", "coffee mug", "duck")
    prompts = [(concept, f"a [v] {concept} {number}") for number in range(300) for concept in concepts]
    train, held_out = contextualizer.split_prompts(prompts)
    assert sorted(train + held_out) == sorted(f"a {concept} {number}" for number in range(300) for concept in concepts)
    assert 30 <= len(held_out) <= 180
    numbers = [prompt.split()[-1] for prompt in held_out]
    assert all(numbers.count(number) == len(concepts) for number in numbers)
    assert contextualizer.split_prompts(prompts[::-1])[1] == held_out[::-1]


def test_sentences_around_a_concept_are_the_same_without_spaces() -> None:
    prompts = [(concept, f"{number}只[v]{concept}在雪里") for number in range(300) for concept in ("狗", "猫")]
    _, held_out = contextualizer.split_prompts(prompts)
    assert all(prompt.replace("狗", "猫") in held_out for prompt in held_out)


@pytest.mark.slow
def test_the_stage_trains_and_measures(ray_cluster: str, tmp_path: Path) -> None:
    write_random_backbone(tmp_path / "base" / "backbone")
    inputs = {"base": tmp_path / "base", "prompts": write_prompts(tmp_path / "prompts")}
    context = make_context(tmp_path, inputs, contextualizer={"steps": 10, "batch_size": 8, "trainer": TRAINER})
    result = contextualizer.run(context)
    assert {"held_out_accuracy", "majority_accuracy", "unigram_accuracy", "held_out_positions"} <= result.metrics.keys()
    assert Contextualizer.from_pretrained(context.output / "contextualizer").config["num_layers"] == 4
