"""The subjects of a request (RealCustom++ Sec. III-E: One2One, One2Many, Many2Many)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from model.errors import GenerationError


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A reference picture and the word that it stands for.

    One2Many: several subjects with the same picture and different words. Many2Many: each with its own picture.
    Multi-round: a generated picture with a longer phrase, e.g. "dog with the pink hat".

    Attributes:
        picture: The reference.
        word: The word or phrase of the prompt that it stands for; needed if the mask has to be found.
        scope: gamma_scope^j, the share of the picture's positions that it may take; None: the settings' `mask_scope`.
        scale: Strength of its visual attention; None: the settings' `visual_scale`.
        mask: Replaces the mask of the guidance branch: white where the subject may be, of the size of the generated
            picture. The masks of the other subjects do not overlap it.
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
        scale: of subjects without their own.

    Raises:
        GenerationError: the numbers do not fit together, or words are given together with `Subject`s.
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
        raise GenerationError(f"the word {word!r} is given together with subjects that have their own words.")
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
        raise GenerationError(f"the strength of a subject is {scale}; it must be a finite number of at least 0.")
    return replace(subject, scope=scope, scale=scale)


@dataclass(frozen=True)
class References:
    """The distinct reference pictures of a batch. K is the largest number of references of a prompt."""

    pictures: list[Image.Image]
    of_prompt: list[list[int]]  # for each of B prompts K indices into `pictures`, padded with the first one
    of_subject: list[list[int]]  # for each subject of a prompt its index among the K

    @classmethod
    def of(cls, subjects: Sequence[Sequence[Subject]]) -> References:
        """Subjects with the same picture object share it: One2Many encodes its reference once."""
        pictures = {id(one.picture): one.picture for of_prompt in subjects for one in of_prompt}
        indices = {key: index for index, key in enumerate(pictures)}
        distinct = [list(dict.fromkeys(indices[id(one.picture)] for one in of_prompt)) for of_prompt in subjects]
        slots = max(len(of_prompt) for of_prompt in distinct)
        return cls(
            pictures=list(pictures.values()),
            of_prompt=[found + [found[0]] * (slots - len(found)) for found in distinct],
            of_subject=[
                [found.index(indices[id(one.picture)]) for one in of_prompt]
                for of_prompt, found in zip(subjects, distinct, strict=True)
            ],
        )
