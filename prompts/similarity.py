"""How alike prompts are, by the words that carry their context: near-duplicates, and the diversity of a set.

Two prompts are compared by the Jaccard similarity of their word uni- and bigrams (Broder 1997, resemblance). Words of
grammar ("the", "next to") and of the medium that every caption may name ("a photo of") are left out, inflections are
cut, and the class word counts as one token with the placeholder. So "a photo of a [v] dog running on the beach" and
"the [v] dog runs along a beach" are equal, and "a [v] dog in a museum" differs from both.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from prompts.schema import PLACEHOLDER, WORDS, replace_named

#: Pairs that a mean distance is taken over, at most; drawn at random, but the same for the same set.
MAX_PAIRS = 20_000

_FRAMES = "photo photograph picture image shot"
_FUNCTION_WORDS = (
    "a an the this that these those some one its his her their my your our it he she they of in on at by to from into "
    "onto with without near next beside besides along alongside through over under above below behind between among "
    "during while as and or is are was were be being been there here for up down off out around against across toward "
    "towards front top"
)
_LEFT_OUT = frozenset(f"{_FRAMES} {_FUNCTION_WORDS}".split())
_ENDINGS = ("ing", "ed", "es", "s")


def content_words(prompt: str, concept: str | None) -> list[str]:
    """The words of a prompt that say something, without their endings. `concept` is its class word, if it has one."""
    text = prompt if concept is None else replace_named(prompt, concept, PLACEHOLDER)
    return [_stem(word) for word in WORDS.findall(text.casefold()) if word not in _LEFT_OUT]


def ngrams_of(prompt: str, concept: str | None) -> frozenset[str]:
    """The uni- and bigrams of the content words."""
    words = content_words(prompt, concept)
    return frozenset([*words, *map(" ".join, itertools.pairwise(words))])


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Share of the elements of either set that are in both; two empty sets are equal."""
    return len(one & other) / len(one | other) if one or other else 1.0


@dataclass
class DistinctPrompts:
    """Prompts of one set, none of which is too similar to another.

    Attributes:
        concept: The class word; None if the prompts have none in common.
        max_similarity: Prompts that are more similar than this are near-duplicates; equal ones always are.
    """

    concept: str | None
    max_similarity: float
    _grams: list[frozenset[str]] = field(default_factory=list, init=False)
    _texts: set[str] = field(default_factory=set, init=False)
    _by_gram: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list), init=False)

    def add(self, prompt: str) -> bool:
        """Take a prompt, unless it is equal or too similar to one that was taken before; returns whether it was."""
        text = " ".join(prompt.casefold().split())
        grams = ngrams_of(prompt, self.concept)
        if text in self._texts or self._has_similar(grams):
            return False
        for gram in grams:
            self._by_gram[gram].append(len(self._grams))
        self._grams.append(grams)
        self._texts.add(text)
        return True

    def _has_similar(self, grams: frozenset[str]) -> bool:
        shared = Counter(number for gram in grams - {PLACEHOLDER} for number in self._by_gram.get(gram, ()))
        return any(jaccard(grams, self._grams[number]) > self.max_similarity for number in shared)


def distinct_share(prompts: Sequence[str], length: int) -> float:
    """distinct-n (Li et al. 2016): the share of a set's word n-grams of this length that are different; 0 for none."""
    words = [WORDS.findall(prompt.casefold()) for prompt in prompts]
    grams = [tuple(line[start : start + length]) for line in words for start in range(len(line) - length + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def mean_distance(prompts: Sequence[str], concept: str | None) -> float:
    """The mean of 1 - Jaccard similarity over the pairs of a set; 0 if there are fewer than two prompts."""
    grams = [ngrams_of(prompt, concept) for prompt in prompts]
    count = len(grams)
    if count * (count - 1) // 2 <= MAX_PAIRS:
        pairs = [(first, second) for second in range(count) for first in range(second)]
    else:
        draw = random.Random(count)
        pairs = [(first, second) for first, second in (draw.sample(range(count), 2) for _ in range(MAX_PAIRS))]
    return sum(1 - jaccard(grams[first], grams[second]) for first, second in pairs) / len(pairs) if pairs else 0.0


def _stem(word: str) -> str:
    """The word without an English ending: "sitting" and "sits" become "sit"."""
    if word.endswith("ss") or word == PLACEHOLDER:
        return word
    ending = next((end for end in _ENDINGS if word.endswith(end) and len(word) - len(end) >= 3), "")
    stem = word.removesuffix(ending)
    if ending in ("ing", "ed") and stem[-1] == stem[-2] and stem[-1] not in "ls":
        stem = stem[:-1]
    return stem.removesuffix("e") if len(stem) > 3 else stem
