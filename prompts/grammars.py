"""Prompt sets without a language model: different sentences of a grammar, the same for the same seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Literal

from prompts import micro_grammar
from prompts.english import grammar as english_grammar
from prompts.evaluation_prompts import EvaluationPromptFinder
from prompts.schema import RichPrompt, Variation
from prompts.similarity import DistinctPrompts

GrammarName = Literal["micro", "english"]

#: The writers that a dataset records.
WRITERS: dict[GrammarName, str] = {"micro": "grammar", "english": "english grammar"}


def grammar_prompts(
    grammar: GrammarName, concept: str, counts: Mapping[Variation, int], seed: int, max_similarity: float
) -> list[RichPrompt]:
    """Prompts for `concept`, `counts` of each variation; no two are equal, none serves evaluation.

    The micro world's vocabulary is too small for a limit of similarity; its sentences are different, no more.

    Raises:
        ValueError: The grammar has fewer sentences.
    """
    finder = EvaluationPromptFinder([concept])
    distinct = DistinctPrompts(concept, 1.0 if grammar == "micro" else max_similarity)
    written: list[RichPrompt] = []
    for variation, count in counts.items():
        candidates = _candidates(grammar, variation, concept, count, random.Random(f"{seed}/{concept}/{variation}"))
        fresh = (text for text in candidates if finder.benchmark_of(text) is None and distinct.add(text))
        chosen = list(itertools.islice(fresh, count))
        if len(chosen) < count:
            raise ValueError(
                f"the {grammar} grammar has only {len(chosen)} {variation} prompts for {concept!r}, not {count}"
            )
        written += [RichPrompt(prompt=text, variation=variation) for text in chosen]
    return written


def _candidates(
    grammar: GrammarName, variation: Variation, concept: str, count: int, rng: random.Random
) -> Iterator[str]:
    if grammar == "micro":
        listed = sorted(set(micro_grammar.sentences(variation, concept)))
        rng.shuffle(listed)
        return iter(listed)
    return itertools.islice(english_grammar.sentences(variation, concept, rng), 50 * count + 1000)
