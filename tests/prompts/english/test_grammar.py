"""The English grammar: sound sentences about any class word."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from prompts.english.grammar import sense_of, sentences, subject_phrase
from prompts.schema import TAILORED, VARIATIONS, Variation, fault_of

WORDS = [
    "dog", "cat", "toy", "backpack", "teapot", "vase", "boot", "person", "umbrella", "hour glass", "stuffed animal",
    "glasses", "sunglasses", "grapes", "bread", "people", "unicorn", "rc car", "pair of shoes", "bowl of berries",
    "qwertz", "1984", "on", "T-shirt", "éclair", "狗", "teddy bear", "fire hydrant",
]  # fmt: skip


@pytest.mark.parametrize("variation", [*VARIATIONS, TAILORED])
@pytest.mark.parametrize("concept", WORDS)
def test_sentences_are_usable_and_have_right_articles(concept: str, variation: Variation) -> None:
    for sentence in itertools.islice(sentences(variation, concept, random.Random(0)), 60):
        assert fault_of(sentence, concept) is None
        assert not re.search(
            r"\ba [aeio]|\ban [^aeiou]|  |\{|\ba some\b|\ba pair of a\b", sentence.replace("[v]", "vee")
        )


@pytest.mark.parametrize(
    ("concept", "adjective", "phrase"),
    [
        ("dog", "", "a [v] dog"),
        ("dog", "old", "an old [v] dog"),
        ("umbrella", "", "a [v] umbrella"),
        ("glasses", "", "a pair of [v] glasses"),
        ("glasses", "emerald green", "an emerald green pair of [v] glasses"),
        ("grapes", "", "some [v] grapes"),
        ("grapes", "tiny", "some tiny [v] grapes"),
    ],
)
def test_determiners(concept: str, adjective: str, phrase: str) -> None:
    assert subject_phrase(concept, adjective) == phrase


@pytest.mark.parametrize(
    ("concept", "sense"),
    [
        ("dog", "animal"),
        ("golden retriever", "animal"),
        ("Person", "person"),
        ("dogs", "animal"),
        ("stuffed animal", "thing"),
        ("teddy bear", "thing"),
        ("hot dog", "thing"),
        ("duck toy", "thing"),
        ("rc car", "vehicle"),
        ("bowl of berries", "vessel"),
        ("qwertz", "thing"),
    ],
)
def test_senses(concept: str, sense: str) -> None:
    assert sense_of(concept) == sense
