"""Prompts of DreamBench and MS-Bench are recognized in every spelling, and nothing else is."""

from __future__ import annotations

import pytest

from prompts.evaluation_prompts import EVALUATION_PROMPTS, EvaluationPromptFinder, evaluation_prompt_in

FINDER = EvaluationPromptFinder(["mug", "coffee mug", "umbrella"])


@pytest.mark.parametrize("benchmark", EVALUATION_PROMPTS)
@pytest.mark.parametrize("word", ["[v] {}", "{}", "<sks> {}", "[V]  {}"])
def test_every_prompt_of_a_benchmark_is_recognized(benchmark: str, word: str) -> None:
    for template in EVALUATION_PROMPTS[benchmark]:
        filled = template.format(word.format("mug"), "dog", "hat", word=word.format("mug"))
        assert FINDER.benchmark_of(filled) == benchmark


@pytest.mark.parametrize(
    "prompt",
    [
        "a [v] mug in the jungle",
        "A [V] MUG IN THE JUNGLE",
        "a [v] mug, in the jungle.",
        '"A [v] mug in the jungle!"',
        "an [v] umbrella in the jungle",
        "an umbrella in the jungle",
        "the [v] mug in a jungle",
        "[v] mug in jungle",
        "a [v] in the jungle",
        "a V* mug in the jungle",
        "a sks dog in the jungle",
        "a <new1> cat in the jungle",
        "a {word} in the jungle",
        "a {} in the jungle",
        "a [v] coffee mug in the jungle",
        "a stuffed animal in the jungle",
        "a cube-shaped [v] mug",
        "a  [v]\tmug in the jungle",
        "a \uff3bv\uff3d mug in the jungle",
        "A mug with the eiffel tower in the background",
        "a [v] mug and a cat in a room",
        "a mug, a cat and a dog on the beach",
        "a [v] dog wearing a t-shirt on the grass",
        "a woman wearing a hat and jeans in the snow",
        "a [v] mug with a barn in the background",
        "a cat and dog with a waterfall in the background",
    ],
)
def test_spellings(prompt: str) -> None:
    assert FINDER.benchmark_of(prompt) is not None


@pytest.mark.parametrize(
    "prompt",
    [
        "a photo of a [v] mug in the jungle",
        "a [v] mug in the jungle at night",
        "a [v] mug in a dense jungle",
        "a [v] unicorn in the jungle",
        "a [v] mug at the Eiffel Tower",
        "a [v] mug and a red ball on the beach",
        "a [v] mug with a church in the background",
        "a man wearing a hat and jeans in the snow",
        "in the jungle",
        "",
    ],
)
def test_other_prompts(prompt: str) -> None:
    assert FINDER.benchmark_of(prompt) is None


def test_the_first_one_of_a_set_is_named() -> None:
    texts = ["a [v] mug at sea", "a [v] mug on the beach", "a red [v] mug"]
    assert evaluation_prompt_in(texts, ["mug"]) == ("a [v] mug on the beach", "DreamBench")
    assert evaluation_prompt_in(texts[:1], ["mug"]) is None
