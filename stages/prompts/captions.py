"""Captions that `filter` has kept, as texts that the Contextualizer learns from."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from prompts.evaluation_prompts import EvaluationPromptFinder
from prompts.schema import MAX_PROMPT_WORDS, PLACEHOLDER, WORDS
from prompts.similarity import DistinctPrompts
from stages.contract import StageError
from stages.data.datasets import read_dataset
from stages.data.schemas import CAPTIONS, SAMPLES, content_id
from stages.prompts.config import PromptsConfig
from stages.storage import StorePath


@dataclass(frozen=True)
class Captions:
    """The chosen captions, and how many others were left out for which reason."""

    table: pa.Table
    metrics: dict[str, float]


def choose_captions(samples: StorePath, settings: PromptsConfig, seed: int) -> Captions:
    """At most `prompts.captions` captions, in an order that the seed decides.

    Left out are near-duplicates, prompts of benchmarks, and captions that are too long for the text encoder.

    Raises:
        StageError: There is no caption to choose.
    """
    captions = read_dataset(samples, SAMPLES, ["caption"])["caption"].to_pylist()
    texts = {" ".join(caption.split()) for caption in captions}
    finder = EvaluationPromptFinder([*settings.concepts, *settings.tailored_concepts])
    distinct = DistinctPrompts(None, settings.max_similarity)
    chosen: list[str] = []
    left_out = {"captions_near_duplicate": 0.0, "captions_of_benchmarks": 0.0}
    for text in sorted(texts, key=lambda text: content_id(str(seed), text)):
        if len(chosen) == settings.captions:
            break
        if not 1 < len(WORDS.findall(text)) <= MAX_PROMPT_WORDS or PLACEHOLDER in text:
            continue
        if finder.benchmark_of(text) is not None:
            left_out["captions_of_benchmarks"] += 1
        elif distinct.add(text):
            chosen.append(text)
        else:
            left_out["captions_near_duplicate"] += 1
    if not chosen:
        raise StageError(
            "filter has kept no caption that can be used: set prompts.captions to 0, or relax filter's rules."
        )
    rows = [{"caption_id": content_id("caption", text), "caption": text} for text in chosen]
    return Captions(pa.Table.from_pylist(rows, schema=CAPTIONS), left_out)
