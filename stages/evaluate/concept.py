"""The arm of the learned concepts: pictures of their own subjects, painted without an adapter."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.pictures.decoding import PictureError, load_picture, picture_files
from stages.config import Config
from stages.contract import StageError
from stages.evaluate.cases import Case, Subject, load_subjects, make_cases, read_subject
from stages.local_copies import local_copy
from stages.storage import StorePath, absolute

_PICTURES = 8


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A learned concept with one of its subjects.

    Attributes:
        folder: See `model.concepts.folder`.
        placeholder: V*.
        method: That learned it.
        learned: The verdict of the stage `customize`, and why in one sentence.
    """

    folder: StorePath
    placeholder: str
    subject: Subject
    method: str
    learned: bool
    verdict: str


def read_concepts(inputs: Mapping[str, StorePath], config: Config) -> list[Concept]:
    """Read the output of the stage `customize`, if it is part of the run.

    Subjects are folders of pictures, or the microworld's.

    Raises:
        StageError: A concept's subject is not there.
    """
    if "customize" not in inputs:
        return []
    folder = absolute(inputs["customize"])
    return [
        Concept(
            folder=folder / entry["folder"],
            placeholder=entry["placeholder"],
            subject=_subject_of(entry, inputs, config),
            method=entry["method"],
            learned=entry["learned"],
            verdict=entry["verdict"],
        )
        for entry in json.loads((folder / "concepts.json").read_text())
    ]


def _subject_of(entry: Mapping[str, Any], inputs: Mapping[str, StorePath], config: Config) -> Subject:
    name, word, customize = entry["name"], entry["word"], config.customize
    if customize.subjects is not None:
        pictures = Path(customize.subjects[customize.placeholder_names.index(entry["placeholder"])])
        readable = [path for path in picture_files(pictures) if _can_be_read(path)]
        if len(readable) == 1:
            readable *= 2  # what is painted is compared with the picture that it was learned from
        return read_subject(name, word, readable)
    subjects = inputs["microworld"] / "subjects"
    held_out = {subject.name: subject for subject in load_subjects(local_copy(subjects), None)}
    if name not in held_out:
        raise StageError(f"The concept's subject {name} is not in {subjects}; run customize again.")
    return held_out[name]


def _can_be_read(picture: Path) -> bool:
    """`customize` has named those that cannot."""
    try:
        load_picture(picture)
    except PictureError:
        return False
    return True


def concept_cases(concept: Concept, config: Config) -> tuple[list[Case], list[str]]:
    """The concept's cases, and their prompts with the placeholder before the class word that stands for the subject."""
    settings = dataclasses.replace(config.evaluate, prompts_per_subject=_PICTURES)
    cases = make_cases([concept.subject], settings, config.run.seed)
    return cases, [case.prompt_of(f"{concept.placeholder} {concept.subject.word}") for case in cases]
