"""What is painted of several subjects: pairs of held-out subjects, each with a prompt, and three rounds of the first.

Multi-round goes as in the paper's Fig. 17: what one round's prompt adds to the subject, the next round's phrase names,
so that it is kept from the picture of the round before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.microworld.captions import article
from model.pictures import PictureError, load_picture
from stages.contract import StageError
from stages.evaluate.cases import Subject, load_subjects, templates_for
from stages.evaluate.config import EvaluateConfig

#: Of each round: the phrase that the reference stands for, and how the prompt describes the subject.
ROUNDS = (("{word}", "striped {word}"), ("striped {word}", "small striped {word}"), ("small striped {word}",) * 2)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two held-out subjects."""

    subjects: tuple[Subject, Subject]
    together: bytes  # a picture of both, the reference of One2Many


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of multi-round generation, of the pair's first subject."""

    prompt: str
    phrase: str  # the words of the prompt that the reference stands for


@dataclass(frozen=True, kw_only=True)
class PairCase:
    """What is painted of a pair, always from the same noise."""

    pair: Pair
    prompt: str  # names both subjects
    rounds: tuple[Round, ...]
    seed: int


def load_pairs(folder: Path, count: int) -> list[Pair]:
    """The first `count` pairs of a folder of subjects; none where it has no `pairs.json`.

    `pairs.json` is a list of {"subjects": [name, name], "together": path}, the path relative to the folder.

    Raises:
        StageError: The list is of another form, names a subject that the folder lacks, or two of one class word; a
            picture cannot be read.
    """
    listing = folder / "pairs.json"
    if not count or not listing.is_file():
        return []
    try:
        listed = [((*entry["subjects"],), folder / entry["together"]) for entry in json.loads(listing.read_text())]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        needed = '{"subjects": [..., ...], "together": ...}'
        raise StageError(f"{listing} must be a list of {needed}, one a pair ({error}).") from error
    subjects = {subject.name: subject for subject in load_subjects(folder, None)}
    return [_pair(subjects, names, together) for names, together in listed[:count]]


def _pair(subjects: dict[str, Subject], names: tuple[str, ...], together: Path) -> Pair:
    found = [subjects[name] for name in names if name in subjects]
    if len(found) != 2 or len(names) != 2 or found[0].word == found[1].word:
        raise StageError(f"pairs.json: {' and '.join(names)} are not two known subjects with different class words.")
    try:
        load_picture(together)
    except PictureError as error:
        raise StageError(f"The pair {' and '.join(names)}: {error}") from error
    return Pair(subjects=(found[0], found[1]), together=together.read_bytes())


def make_pair_cases(pairs: Sequence[Pair], config: EvaluateConfig, seed: int) -> list[PairCase]:
    """A case a pair; the prompts take turns over pairs and rounds, no two cases share a seed."""
    cases = []
    for number, pair in enumerate(pairs):
        first, second = (subject.word for subject in pair.subjects)
        templates = templates_for(first, config)
        places = [templates[(number + turn) % len(templates)] for turn in range(len(ROUNDS) + 1)]
        rounds = [
            Round(
                prompt=place.replace("{word}", described.format(word=first)),
                phrase=phrase.format(word=first),
            )
            for (phrase, described), place in zip(ROUNDS, places[1:], strict=True)
        ]
        prompt = places[0].replace("{word}", f"{first} and {article(second)}")
        cases.append(PairCase(pair=pair, prompt=prompt, rounds=tuple(rounds), seed=seed + number))
    return cases
