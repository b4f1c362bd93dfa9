"""The learned concept as a further arm: pictures of its own subject, painted without an adapter."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from stages.config import Config
from stages.contract import StageError
from stages.evaluate.cases import Case, Subject, load_subjects, make_cases, picture_files, read_subject

_PICTURES = 8


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A word that the text encoder has learned, and the subject that it stands for."""

    folder: Path
    placeholder: str
    subject: Subject


def read_concept(folder: Path, config: Config, subjects_folder: Path) -> Concept:
    """The concept that `customize` has written.

    Raises:
        StageError: Its subject is neither the folder that was configured nor one of the held-out subjects.
    """
    description = json.loads((folder / "concept.json").read_text())
    name, word = description["subject"], description["word"]
    if config.customize.subject is not None:
        pictures = Path(config.customize.subject)
        subject = read_subject(pictures.name, word, picture_files(pictures))
    else:
        found = [subject for subject in load_subjects(subjects_folder, None) if subject.name == name]
        if not found:
            raise StageError(f"The concept's subject {name} is not in {subjects_folder}; run customize again.")
        subject = found[0]
    return Concept(folder=folder, placeholder=description["placeholder"], subject=subject)


def concept_cases(concept: Concept, config: Config) -> tuple[list[Case], list[str]]:
    """The cases to paint, and their prompts with the placeholder before the class word."""
    more = dataclasses.replace(config.evaluate, prompts_per_subject=_PICTURES)
    cases = make_cases([concept.subject], more, config.run.seed)
    word = concept.subject.word
    return cases, [case.prompt.replace(word, f"{concept.placeholder} {word}", 1) for case in cases]
