"""Sets of both grammars: their size, their quotas, and what they leave out."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompts.evaluation_prompts import evaluation_prompt_in
from prompts.grammars import GrammarName, grammar_prompts
from prompts.schema import TAILORED, VARIATIONS, Variation, fault_of
from prompts.similarity import jaccard, ngrams_of
from stages.prompts.config import PromptsConfig

LIMIT = PromptsConfig().max_similarity


@settings(max_examples=20, deadline=None)
@given(
    grammar=st.sampled_from(["micro", "english"]),
    concept=st.sampled_from(PromptsConfig().concepts),
    counts=st.dictionaries(st.sampled_from([*VARIATIONS, TAILORED]), st.integers(0, 30)),
    seed=st.integers(0, 99),
)
def test_sets_are_usable_and_the_same_for_the_same_seed(
    grammar: GrammarName, concept: str, counts: dict[Variation, int], seed: int
) -> None:
    prompts = grammar_prompts(grammar, concept, counts, seed, LIMIT)
    texts = [prompt.prompt for prompt in prompts]
    assert Counter(prompt.variation for prompt in prompts) == Counter(counts)
    assert len(set(texts)) == len(texts)
    assert all(fault_of(text, concept) is None for text in texts)
    assert evaluation_prompt_in(texts, [concept]) is None
    assert prompts == grammar_prompts(grammar, concept, counts, seed, LIMIT)


@pytest.mark.parametrize("concept", ["dog", "person", "qwertz"])
def test_english_has_thousands_of_different_prompts_for_a_word(concept: str) -> None:
    prompts = grammar_prompts("english", concept, dict.fromkeys(VARIATIONS, 400), 0, LIMIT)
    grams = [ngrams_of(prompt.prompt, concept) for prompt in prompts]
    assert len(grams) == 2000
    assert max(jaccard(grams[number], other) for number in range(10) for other in grams[number + 1 :]) <= LIMIT


def test_seeds_differ() -> None:
    counts: dict[Variation, int] = {"background": 20}
    grammars: tuple[GrammarName, ...] = ("micro", "english")
    for grammar in grammars:
        first = grammar_prompts(grammar, "mug", counts, 0, LIMIT)
        assert first != grammar_prompts(grammar, "mug", counts, 1, LIMIT)


def test_more_prompts_than_sentences_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the micro grammar has only \d+ style prompts for 'mug', not 100000"):
        grammar_prompts("micro", "mug", {"style": 100_000}, 0, LIMIT)
    with pytest.raises(ValueError, match=r"the english grammar has only \d+ style prompts for 'mug', not 300"):
        grammar_prompts("english", "mug", {"style": 300}, 0, 0.01)
