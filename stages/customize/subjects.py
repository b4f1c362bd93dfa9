"""The subjects that concepts are learned from: their pictures and captions, from folders or from the microworld."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from model.files import TextError, printable_name, read_text
from model.pictures.crops import square_crop
from model.pictures.decoding import PICTURE_SUFFIXES, PictureError, left_out_pictures, load_picture, picture_files
from stages.contract import Reporter, StageError
from stages.customize.config import CustomizeConfig
from stages.local_copies import local_copy
from stages.storage import StorePath

_MAX_PICTURES = 6


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One subject.

    Attributes:
        name: Different for each subject; a valid name of a folder.
        word: The class word.
        placeholder: V*.
        files: Its pictures, which may be damaged.
    """

    name: str
    word: str
    placeholder: str
    files: Sequence[Path]


def find_subjects(config: CustomizeConfig, inputs: Mapping[str, StorePath], report: Reporter) -> list[Subject]:
    """The subject of each configured folder, or the microworld's held-out subjects with the configured words.

    Names the pictures that are left out for their names.

    Raises:
        StageError: There is no such folder or subject, or no picture in it.
    """
    if config.subjects is not None:
        found = [_subject_in(Path(folder), report) for folder in config.subjects]
    else:
        found = _held_out(config, local_copy(inputs["microworld"] / "subjects"))
    names = _different([name for name, _ in found])
    return [
        Subject(name=name, word=word, placeholder=placeholder, files=files)
        for name, word, placeholder, (_, files) in zip(
            names, config.words, config.placeholder_names, found, strict=True
        )
    ]


def _subject_in(folder: Path, report: Reporter) -> tuple[str, list[Path]]:
    if not os.path.isdir(folder):
        raise StageError(
            f"{printable_name(folder)} is not a folder: set customize.subjects to a folder of pictures for each."
        )
    pictures = picture_files(folder)
    if left_out := left_out_pictures(folder):
        report.warning(left_out)
    if not pictures:
        raise StageError(
            f"{printable_name(folder)} has no picture ({', '.join(PICTURE_SUFFIXES)}): put 3 to 6 pictures of one "
            'subject there, with names that do not start with "." or "_".'
        )
    return printable_name(folder.name) or "subject", pictures


def _held_out(config: CustomizeConfig, folder: Path) -> list[tuple[str, list[Path]]]:
    """The microworld's subjects with the words, of equal words one after the other."""
    listed: list[dict[str, Any]] = json.loads((folder / "subjects.json").read_text())
    found = []
    for word in config.words:
        entry = next((entry for entry in listed if entry["word"] == word), None)
        if entry is None:
            words = ", ".join(sorted({entry["word"] for entry in listed})) or "other words"
            raise StageError(f"the microworld has no (further) held-out {word!r}: set customize.words to {words}.")
        listed.remove(entry)
        names = entry["pictures"] if config.pictures == "views" else entry["album"]
        found.append((entry["subject"], [folder / name for name in names]))
    return found


def _different(names: Sequence[str]) -> list[str]:
    """The names with a number behind those that are there already."""
    found: list[str] = []
    for name in names:
        number, own = 1, name
        while own.casefold() in map(str.casefold, found):
            number += 1
            own = f"{name}-{number}"
        found.append(own)
    return found


def read_pictures(subject: Subject, size: int, report: Reporter) -> dict[Path, Image.Image]:
    """The first pictures of a subject, square, upright, at most `_MAX_PICTURES`; broken ones are left out and named.

    Raises:
        StageError: None can be read.
    """
    pictures: dict[Path, Image.Image] = {}
    reasons: list[str] = []
    for path in subject.files:
        if len(pictures) == _MAX_PICTURES:
            break
        try:
            pictures[path] = square_crop(load_picture(path), 0.5, 0.5, size)
        except PictureError as error:
            reasons.append(str(error))
            report.warning(f"left out of the subject {subject.name}: {error}")
    if not pictures:
        raise StageError(f"no picture of the subject {subject.name} can be read, for example: {reasons[0]}")
    if len(pictures) == 1:
        report.warning(
            f"the subject {subject.name} has one picture: its background and pose are learned with it; 3 to 6 pictures "
            "are better"
        )
    return pictures


def read_captions(pictures: Sequence[Path], subject: Subject) -> tuple[str, ...]:
    """The caption of each picture: the text of the file beside it that is called like it and ends in .txt.

    Raises:
        StageError: One is missing or no text.
    """
    return tuple(_read_caption(picture.with_suffix(".txt"), subject) for picture in pictures)


def _read_caption(file: Path, subject: Subject) -> str:
    try:
        return " ".join(read_text(file).split())
    except (OSError, TextError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StageError(
            f"customize.prompts=captions needs the text file {printable_name(file)} beside its picture: {reason}."
        ) from error
