"""The cases of the evaluation: held-out subjects times prompts, each with its own seed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.files import TextError, is_utf8, printable_name, read_text, visible_entries
from model.pictures.decoding import PictureError, left_out_pictures, load_picture, picture_files
from stages.contract import StageError
from stages.evaluate.config import EvaluateConfig
from stages.scoring import background_of, templates_for


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One held-out subject: the model gets the reference, the metrics compare with the other views."""

    name: str
    word: str
    reference: bytes
    views: tuple[bytes, ...]


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
    """The first `count` subjects of a folder; all if `count` is None or there are fewer.

    `subjects.json` lists them: {"subject", "word", "pictures"}, with paths relative to the folder. Without that file
    each subfolder with pictures is a subject, and the class word is the subfolder's name with spaces for underscores.

    Raises:
        StageError: The folder is missing or holds no subject; a subject has fewer than two pictures, or one of them
            cannot be read.
    """
    if not os.path.isdir(folder):
        raise StageError(f"evaluate.subjects_folder: there is no folder {printable_name(folder)}.")
    entries = _read_listing(folder) if (folder / "subjects.json").is_file() else _list_subfolders(folder)
    if not entries:
        raise StageError(
            f"{printable_name(folder)} holds no subjects; it needs one folder of pictures for each, whose name is its "
            'class word in UTF-8 and does not start with "." or "_".'
        )
    return [read_subject(name, word, paths) for name, word, paths in entries[:count]]


def left_out(folder: Path) -> list[str]:
    """Sentences on subjects and pictures that are left out for their names; none if there is a `subjects.json`."""
    if (folder / "subjects.json").is_file():
        return []
    folders = _picture_folders(folder)
    unnamed = (path for path in folders if not is_utf8(path.name))
    return [
        *(f"left out the subject {printable_name(path)}: its name is not UTF-8; rename it" for path in unnamed),
        *filter(None, map(left_out_pictures, folders)),
    ]


def _read_listing(folder: Path) -> list[tuple[str, str, list[Path]]]:
    listing = folder / "subjects.json"
    try:
        return [
            (entry["subject"], entry["word"], [folder / name for name in entry["pictures"]])
            for entry in json.loads(read_text(listing))
        ]
    except TextError as error:
        raise StageError(f"evaluate.subjects_folder: {error}") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        needed = '{"subject": ..., "word": ..., "pictures": [...]}'
        raise StageError(f"{listing} must be a list with {needed} for each subject ({error}).") from error


def _list_subfolders(folder: Path) -> list[tuple[str, str, list[Path]]]:
    subfolders = [path for path in _picture_folders(folder) if is_utf8(path.name)]
    return [(path.name, path.name.replace("_", " "), picture_files(path)) for path in subfolders]


def _picture_folders(folder: Path) -> list[Path]:
    return [path for path in visible_entries(folder) if os.path.isdir(path) and picture_files(path)]


def read_subject(name: str, word: str, paths: Sequence[Path]) -> Subject:
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
    return Subject(name=name, word=word, reference=reference, views=tuple(views))


def make_cases(subjects: Sequence[Subject], config: EvaluateConfig, seed: int) -> list[Case]:
    """`prompts_per_subject` cases for each subject; the templates take turns, and each case has its own seed."""
    cases = []
    for number, subject in enumerate(subjects):
        templates = templates_for(subject.word, config)
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
