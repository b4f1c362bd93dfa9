"""The micro grammar's sentences are usable, and fit the micro world's tokenizer."""

from __future__ import annotations

import pytest

from model.microworld.captions import VOCABULARY
from model.microworld.shapes import CATEGORIES
from prompts.micro_grammar import HABITATS, MAX_WORDS, sentences
from prompts.schema import PLACEHOLDER, TAILORED, VARIATIONS, Variation, fault_of
from stages.prompts.config import PromptsConfig


@pytest.mark.parametrize("concept", PromptsConfig().concepts)
@pytest.mark.parametrize("variation", [*VARIATIONS, TAILORED])
def test_the_tokenizer_has_every_word_and_every_sentence_fits(concept: str, variation: Variation) -> None:
    for sentence in sentences(variation, concept):
        words = sentence.split()
        assert set(words) <= {*VOCABULARY, PLACEHOLDER}
        assert len(words) <= MAX_WORDS
        assert fault_of(sentence, concept) is None


def test_habitats_are_of_the_worlds_categories() -> None:
    assert set(HABITATS) <= set(CATEGORIES)
