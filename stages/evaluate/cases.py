"""The cases of the evaluation: held-out subjects times prompts, each with its own seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.pictures.decoding import PictureError, load_picture
from stages.contract import StageError
from stages.evaluate.config import EvaluateConfig
from stages.scoring import background_of, templates_for
from stages.subject_lists import list_subjects


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One held-out subject: the model gets the reference, the metrics compare with the other views."""

    name: str
    word: str
    reference: bytes
    views: tuple[bytes, ...]
    prompts: tuple[str, ...] = ()  # its benchmark's own, with {word}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One picture to paint in every arm."""

    subject: Subject
    template: str  # with {word}
    seed: int
    background: str | None  # the microworld's background that the prompt names

    @property
    def prompt(self) -> str:
        """With the class word."""
        return self.prompt_of(self.subject.word)

    def prompt_of(self, name: str) -> str:
        """With a name of the subject where the template has {word}."""
        return self.template.replace("{word}", name)


def load_subjects(folder: Path, count: int | None) -> list[Subject]:
    """The first `count` subjects of a folder (`stages.subject_lists`); all if `count` is None or there are fewer.

    Raises:
        StageError: The folder is missing or holds no subject; a subject has fewer than two pictures, or one of them
            cannot be read.
    """
    listed, _ = list_subjects(folder)
    return [read_subject(one.name, one.word, one.pictures, one.prompts) for one in listed[:count]]


def read_subject(name: str, word: str, paths: Sequence[Path], prompts: tuple[str, ...] = ()) -> Subject:
    """A subject from its picture files, the reference first.

    Raises:
        StageError: There are fewer than two files, or one of them cannot be read.
    """
    if len(paths) < 2:
        raise StageError(f"Subject {name} has {len(paths)} pictures; it needs a reference and one to compare with.")
    try:
        for path in paths:
            load_picture(path)
    except PictureError as error:
        raise StageError(f"Subject {name}: {error}") from error
    reference, *views = (path.read_bytes() for path in paths)
    return Subject(name=name, word=word, reference=reference, views=tuple(views), prompts=prompts)


def make_cases(subjects: Sequence[Subject], config: EvaluateConfig, seed: int) -> list[Case]:
    """`prompts_per_subject` cases for each subject; the templates take turns, and each case has its own seed."""
    cases = []
    for number, subject in enumerate(subjects):
        templates = templates_for(subject.word, config, subject.prompts)
        for turn in range(config.prompts_per_subject):
            index = number * config.prompts_per_subject + turn
            template = templates[index % len(templates)]
            background = background_of(template)
            cases.append(Case(subject=subject, template=template, seed=seed + index, background=background))
    return cases


def evaluation_id(cases: Sequence[Case], config: EvaluateConfig, judge: str) -> str:
    """Scores are comparable if they have the same id: a digest of pictures, prompts, seeds and metrics.

    Args:
        cases: The cases that are painted.
        config: Names the metrics.
        judge: A digest of the weights that score.
    """
    digest = hashlib.sha256(f"{config.similarity} {config.clip} {config.dino} {judge}".encode())
    for case in cases:
        digest.update(f"\n{case.prompt}\t{case.seed}\t{case.subject.word}".encode())
        for picture in (case.subject.reference, *case.subject.views):
            digest.update(hashlib.sha256(picture).digest())
    return digest.hexdigest()[:24]
