"""The subjects of a picture, as a request names them (RealCustom++ Sec. III-E: One2One, One2Many, Many2Many)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from model.errors import ModelError


class GenerationError(ModelError):
    """A request that cannot be carried out; the message is one sentence for the user."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A reference picture and what it stands for.

    One2Many: several subjects with the same picture and words of their own. Many2Many: each with its own picture.
    Multi-round: a painted picture with a longer phrase, e.g. "dog with the pink hat".

    Attributes:
        picture: The reference.
        word: The word or phrase of the prompt that it stands for; needed where a mask has to be found.
        scope: gamma_scope^j, the share of the picture's positions that it may take; None: the call's `mask_scope`.
        scale: Strength of its visual attention; None: the call's `visual_scale`.
        mask: Where it may be, instead of what the guidance branch finds: white there, of the painted picture's size.
            The masks of the other subjects keep clear of it.
    """

    picture: Image.Image
    word: str | None = None
    scope: float | None = None
    scale: float | None = None
    mask: Image.Image | None = None


SubjectsOfPrompt = Image.Image | Subject | Sequence[Subject]


def subjects_of(
    prompts: Sequence[str],
    subjects: Image.Image | Subject | Sequence[SubjectsOfPrompt],
    words: str | Sequence[str] | None,
    scope: float,
    scale: float,
) -> list[list[Subject]]:
    """The subjects of each prompt.

    Args:
        prompts: B prompts.
        subjects: for each prompt a picture, a `Subject` or a list of them, or one picture or `Subject` for all.
        words: for each picture the word that it stands for, or one for all; a `Subject` has its own.
        scope: of subjects without their own.
        scale: likewise.

    Raises:
        GenerationError: the numbers do not fit together, or words are given beside `Subject`s.
    """
    given = [subjects] * len(prompts) if isinstance(subjects, Image.Image | Subject) else list(subjects)
    if len(given) != len(prompts):
        raise GenerationError(
            f"{len(given)} subjects for {len(prompts)} prompts; give one each (or a list each), or one for all."
        )
    named = [words] * len(prompts) if words is None or isinstance(words, str) else list(words)
    if len(named) != len(prompts):
        raise GenerationError(f"{len(named)} words for {len(prompts)} prompts; give one each, or one for all.")
    return [_of_prompt(one, word, scope, scale) for one, word in zip(given, named, strict=True)]


def _of_prompt(given: SubjectsOfPrompt, word: str | None, scope: float, scale: float) -> list[Subject]:
    if isinstance(given, Image.Image):
        found = [Subject(picture=given, word=word)]
    elif word is not None:
        raise GenerationError(f"the word {word!r} is given beside subjects that have words of their own.")
    else:
        found = [given] if isinstance(given, Subject) else list(given)
    if not found or not all(isinstance(one, Subject) for one in found):
        raise GenerationError(
            "the subjects of a prompt must be a picture, a Subject, or a list of one or more Subjects."
        )
    return [_with_defaults(one, scope, scale) for one in found]


def _with_defaults(subject: Subject, scope: float, scale: float) -> Subject:
    scope = scope if subject.scope is None else subject.scope
    scale = scale if subject.scale is None else subject.scale
    if not 0 <= scale < math.inf:
        raise GenerationError(f"the strength of a subject is {scale}; it must be a number from 0 on.")
    return replace(subject, scope=scope, scale=scale)


@dataclass(frozen=True)
class References:
    """Every picture once, and which of them a prompt's subjects show. K is the largest number of them in a prompt."""

    pictures: list[Image.Image]
    of_prompt: list[list[int]]  # B lists of K indices into `pictures`; the rest are filled up with the first
    of_subject: list[list[int]]  # for each subject of a prompt which of the K it is

    @classmethod
    def of(cls, subjects: Sequence[Sequence[Subject]]) -> References:
        """Subjects that are given the same picture object share it: One2Many looks at its reference once."""
        pictures = {id(one.picture): one.picture for of_prompt in subjects for one in of_prompt}
        places = {key: place for place, key in enumerate(pictures)}
        distinct = [list(dict.fromkeys(places[id(one.picture)] for one in of_prompt)) for of_prompt in subjects]
        slots = max(len(of_prompt) for of_prompt in distinct)
        return cls(
            pictures=list(pictures.values()),
            of_prompt=[found + [found[0]] * (slots - len(found)) for found in distinct],
            of_subject=[
                [found.index(places[id(one.picture)]) for one in of_prompt]
                for of_prompt, found in zip(subjects, distinct, strict=True)
            ],
        )
