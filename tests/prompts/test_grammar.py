"""The grammar's prompts are usable, and fit the micro world's tokenizer."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.microworld.captions import VOCABULARY
from prompts.grammar import MAX_WORDS, grammar_prompts, sentences
from prompts.schema import PLACEHOLDER, VARIATIONS, fault_of
from stages.prompts.config import PromptsConfig


@settings(max_examples=20, deadline=None)
@given(concept=st.sampled_from(PromptsConfig().concepts), count=st.integers(1, 300), seed=st.integers(0, 99))
def test_prompts_are_different_usable_and_the_same_for_the_same_seed(concept: str, count: int, seed: int) -> None:
    prompts = grammar_prompts(concept, count, seed)
    assert len({prompt.prompt for prompt in prompts}) == count
    assert all(fault_of(prompt.prompt, concept) is None for prompt in prompts)
    assert prompts == grammar_prompts(concept, count, seed)


@pytest.mark.parametrize("concept", PromptsConfig().concepts)
@pytest.mark.parametrize("variation", VARIATIONS)
def test_the_tokenizer_has_every_word_and_every_sentence_fits(concept: str, variation: str) -> None:
    for sentence in sentences(variation, concept):  # type: ignore[arg-type]
        words = sentence.split()
        assert set(words) <= {*VOCABULARY, PLACEHOLDER}
        assert len(words) <= MAX_WORDS


def test_variations_are_equally_frequent_and_seeds_differ() -> None:
    prompts = grammar_prompts("mug", 200, 0)
    assert Counter(prompt.variation for prompt in prompts) == dict.fromkeys(VARIATIONS, 40)
    assert prompts != grammar_prompts("mug", 200, 1)


def test_more_prompts_than_sentences_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has only \d+ prompts for 'mug', not 100000"):
        grammar_prompts("mug", 100_000, 0)
