"""The arm of the learned concept: pictures of its own subject, painted without an adapter."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model.concepts.folder import read_concept as read_learned
from model.files import printable_name
from model.pictures.decoding import PictureError, load_picture, picture_files
from stages.config import Config
from stages.contract import StageError
from stages.evaluate.cases import Case, Subject, load_subjects, make_cases, read_subject
from stages.inference import model_errors_as_stage_errors

_PICTURES = 8


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A word that the text encoder has learned, and its subject."""

    folder: Path
    placeholder: str
    subject: Subject


def read_concept(inputs: Mapping[str, Path], config: Config) -> Concept:
    """Read the output of the stage `customize`. Its subject is its own folder of pictures, or one of the microworld's.

    Raises:
        StageError: The concept or its subject is not there.
    """
    folder = inputs["customize"] / "concept"
    with model_errors_as_stage_errors():
        token = read_learned(folder).tokens[0]
    name, word = token.subject, token.word
    if config.customize.subject is not None:
        pictures = Path(config.customize.subject)
        readable = [path for path in picture_files(pictures) if _can_be_read(path)]
        if len(readable) == 1:
            readable *= 2  # what is painted is compared with the picture that it was learned from
        subject = read_subject(printable_name(pictures.name), word, readable)
    else:
        subjects = inputs["microworld"] / "subjects"
        held_out = {subject.name: subject for subject in load_subjects(subjects, None)}
        if name not in held_out:
            raise StageError(f"The concept's subject {name} is not in {subjects}; run customize again.")
        subject = held_out[name]
    return Concept(folder=folder, placeholder=token.placeholder, subject=subject)


def _can_be_read(picture: Path) -> bool:
    """`customize` has named those that cannot."""
    try:
        load_picture(picture)
    except PictureError:
        return False
    return True


def concept_cases(concept: Concept, config: Config) -> tuple[list[Case], list[str]]:
    """The concept's cases, and their prompts with the placeholder before the class word."""
    settings = dataclasses.replace(config.evaluate, prompts_per_subject=_PICTURES)
    cases = make_cases([concept.subject], settings, config.run.seed)
    word = concept.subject.word
    return cases, [case.prompt.replace(word, f"{concept.placeholder} {word}", 1) for case in cases]
