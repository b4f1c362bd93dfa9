"""The cases of multi-subject generation: pairs of held-out subjects, and three rounds of each pair's first subject.

Multi-round generation follows the paper's Fig. 17. The prompt of a round adds a word to the subject; the phrase of the
next round contains that word, so that the property is taken from the picture of the round before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.files import TextError, read_text
from model.microworld.captions import article
from model.pictures.decoding import PictureError, load_picture
from stages.contract import StageError
from stages.evaluate.cases import Subject, load_subjects
from stages.evaluate.config import EvaluateConfig
from stages.scoring import templates_for

#: For each round: the phrase that the reference stands for, and the description of the subject in the prompt.
ROUNDS = (("{word}", "striped {word}"), ("striped {word}", "small striped {word}"), ("small striped {word}",) * 2)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two held-out subjects."""

    subjects: tuple[Subject, Subject]
    together: bytes  # a picture of both subjects, the reference of One2Many


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of multi-round generation with the pair's first subject."""

    prompt: str
    phrase: str  # the words of the prompt that the reference stands for


@dataclass(frozen=True, kw_only=True)
class PairCase:
    """One pair with its prompts. All of its pictures start from the same noise."""

    pair: Pair
    prompt: str  # names both subjects
    rounds: tuple[Round, ...]
    seed: int


def load_pairs(folder: Path, count: int) -> list[Pair]:
    """The first `count` pairs of a folder of subjects; none if it has no `pairs.json`.

    `pairs.json` is a list of {"subjects": [name, name], "together": path}, with paths relative to the folder.

    Raises:
        StageError: The list has another form, names a subject that the folder lacks or two with the same class word,
            or a picture cannot be read.
    """
    listing = folder / "pairs.json"
    if not count or not listing.is_file():
        return []
    try:
        listed = [((*entry["subjects"],), folder / entry["together"]) for entry in json.loads(read_text(listing))]
    except TextError as error:
        raise StageError(f"evaluate.subjects_folder: {error}") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        needed = '{"subjects": [..., ...], "together": ...}'
        raise StageError(f"{listing} must be a list with {needed} for each pair ({error}).") from error
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
    """A case for each pair; the templates take turns over pairs and rounds, and each case has its own seed."""
    cases = []
    for number, pair in enumerate(pairs):
        first, second = (subject.word for subject in pair.subjects)
        templates = templates_for(first, config)
        own = [templates[(number + turn) % len(templates)] for turn in range(len(ROUNDS) + 1)]
        rounds = [
            Round(
                prompt=template.replace("{word}", description.format(word=first)),
                phrase=phrase.format(word=first),
            )
            for (phrase, description), template in zip(ROUNDS, own[1:], strict=True)
        ]
        prompt = own[0].replace("{word}", f"{first} and {article(second)}")
        cases.append(PairCase(pair=pair, prompt=prompt, rounds=tuple(rounds), seed=seed + number))
    return cases
