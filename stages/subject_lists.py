"""Folders with the pictures of subjects, in the layouts of benchmarks: names, class words, pictures, prompts.

- `subjects.json`: a list of {"subject", "word", "pictures"}, with paths relative to the folder;
- CustomConcept101: `dataset.json` names the folder, the class and the file of prompts of each subject;
- DreamBench++: `images/object/00.jpg` with the class word and the prompts in `captions/object/00.txt`;
- DreamBench: a folder for each subject; `prompts_and_classes.txt` has their classes, and prompts for all;
- a folder for each subject whose name is its class word, apart from a number.

A benchmark's list may lie in the folder above, and the folder above DreamBench's `dataset` stands for it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from model.files import TextError, is_utf8, printable_name, read_text, visible_entries
from model.pictures.decoding import left_out_pictures, picture_files
from prompts import dreambench
from stages.class_words import word_of_folder
from stages.contract import StageError

_SUBJECTS, _CONCEPTS = "subjects.json", "dataset.json"
_IMAGES, _CAPTIONS = "images", "captions"
_NAME = re.compile(r"\{[^{}]*\}|<[^<>\s]+>")  # in CustomConcept101's prompts: "a {} in the snow"


@dataclass(frozen=True, kw_only=True)
class ListedSubject:
    """A subject of a folder.

    Attributes:
        name: Unique in the folder.
        word: The class word.
        pictures: Its pictures, the reference first.
        prompts: Those of the benchmark for this subject, with `{word}`; none: the benchmark has none of its own.
    """

    name: str
    word: str
    pictures: Sequence[Path]
    prompts: tuple[str, ...] = ()


def list_subjects(folder: Path) -> tuple[list[ListedSubject], list[str]]:
    """The subjects of a folder in order, and a sentence on each subject or picture that is left out or doubtful.

    Raises:
        StageError: There is no such folder, it holds no subject, or its list cannot be read.
    """
    if not os.path.isdir(folder):
        raise StageError(f"evaluate.subjects_folder: there is no folder {printable_name(folder)}.")
    notes: list[str] = []
    try:
        found = next((found for read in _READERS if (found := read(folder, notes))), [])
    except TextError as error:
        raise StageError(f"evaluate.subjects_folder: {error}") from error
    if not found:
        raise StageError(
            f"{printable_name(folder)} holds no subjects; it needs one folder of pictures for each, whose name is its "
            f'class word in UTF-8 and does not start with "." or "_", or a list ({_SUBJECTS}, '
            f"{dreambench.LISTING}, {_CONCEPTS}).{''.join(f' {note}.' for note in notes[:1])}"
        )
    return found, notes


def _read_house(folder: Path, notes: list[str]) -> list[ListedSubject]:
    listing = folder / _SUBJECTS
    if not listing.is_file():
        return []
    try:
        return [
            ListedSubject(
                name=entry["subject"], word=entry["word"], pictures=[folder / name for name in entry["pictures"]]
            )
            for entry in _json(listing)
        ]
    except (KeyError, TypeError) as error:
        needed = '{"subject": ..., "word": ..., "pictures": [...]}'
        raise StageError(f"{listing} must be a list with {needed} for each subject ({error}).") from error


def _json(file: Path) -> Any:
    try:
        return json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise StageError(f"evaluate.subjects_folder: {printable_name(file)} is not JSON ({error}).") from error


def _read_custom_concepts(folder: Path, notes: list[str]) -> list[ListedSubject]:
    listing = _near(folder, _CONCEPTS)
    entries: Any = _json(listing) if listing else []
    if listing is None or not _is_of_custom_concepts(entries):
        return []
    found, lost = [], []
    for entry in entries:
        name = PurePosixPath(str(entry["instance_data_dir"])).name
        place = _inside(folder, (folder / name, listing.parent / entry["instance_data_dir"]))
        if place is None:
            lost.append(f"left out the subject {printable_name(name)} of {listing.name}: there is no such folder")
            continue
        word = str(entry.get("class_prompt") or word_of_folder(name))
        prompts = _concept_prompts(listing.parent / str(entry.get("prompt_filename", "")))
        found.append(ListedSubject(name=name, word=word, pictures=picture_files(place), prompts=prompts))
    if found or listing.parent == folder:  # else the list above is of other subjects
        notes += lost
    return found


def _inside(folder: Path, places: Sequence[Path]) -> Path | None:
    """The first of the folders that is there and in `folder`."""
    root = os.path.abspath(folder)
    return next((one for one in places if one.is_dir() and Path(os.path.abspath(one)).is_relative_to(root)), None)


def _is_of_custom_concepts(entries: Any) -> bool:
    return (
        isinstance(entries, list)
        and bool(entries)
        and all(isinstance(entry, dict) and isinstance(entry.get("instance_data_dir"), str) for entry in entries)
    )


def _concept_prompts(file: Path) -> tuple[str, ...]:
    if not file.is_file():
        return ()
    lines = (_NAME.sub("{word}", " ".join(line.split())) for line in read_text(file).splitlines())
    return tuple(line for line in lines if "{word}" in line)


def _read_captions(folder: Path, notes: list[str]) -> list[ListedSubject]:
    """DreamBench++ has one picture of each subject, which is reference and measure."""
    if not ((folder / _IMAGES).is_dir() and (folder / _CAPTIONS).is_dir()):
        return []
    found = []
    for caption in visible_entries(folder / _CAPTIONS, "**/*.txt"):
        below = caption.relative_to(folder / _CAPTIONS).with_suffix("")
        pictures = [one for one in picture_files(folder / _IMAGES / below.parent) if one.stem == below.name]
        word, *lines = [" ".join(line.split()) for line in read_text(caption).splitlines() if line.strip()] or [""]
        named = re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE)
        prompts = tuple(named.sub("{word}", line, count=1) for line in lines if word and named.search(line))
        name = "_".join([*below.parts, *word.lower().split()])
        if not pictures or not prompts:
            lacking = f"prompt with its word {word!r}" if pictures else "picture"
            notes.append(f"left out the subject {printable_name(name)}: it has no {lacking}")
            continue
        found.append(ListedSubject(name=name, word=word.lower(), pictures=pictures[:1] * 2, prompts=prompts))
    return found


def _read_folders(folder: Path, notes: list[str]) -> list[ListedSubject]:
    """A folder for each subject, with DreamBench's list or without."""
    inner = folder / "dataset"
    if not (folder / dreambench.LISTING).is_file() and (inner / dreambench.LISTING).is_file():
        folder = inner
    listing = _near(folder, dreambench.LISTING)
    benchmark = dreambench.read_benchmark(read_text(listing)) if listing else None
    if benchmark and not any((folder / name).is_dir() for name in benchmark.classes):
        benchmark = None  # of other subjects
    found = []
    for place in visible_entries(folder):
        pictures = picture_files(place) if os.path.isdir(place) else []
        if not pictures:
            continue
        if not is_utf8(place.name):
            notes.append(f"left out the subject {printable_name(place)}: its name is not UTF-8; rename it")
            continue
        notes += filter(None, [left_out_pictures(place)])
        word = benchmark.classes.get(place.name) if benchmark else None
        if benchmark and word is None:
            guess = word_of_folder(place.name)
            notes.append(f"{dreambench.LISTING} has no class of {place.name}: its class word is {guess!r}, by its name")
        word = word or word_of_folder(place.name)
        prompts = benchmark.prompts(word) if benchmark else ()
        found.append(ListedSubject(name=place.name, word=word, pictures=pictures, prompts=prompts))
    return found


def _near(folder: Path, name: str) -> Path | None:
    """A list in a folder, or in the one above."""
    return next((file for file in (folder / name, folder.absolute().parent / name) if file.is_file()), None)


_READERS: tuple[Callable[[Path, list[str]], list[ListedSubject]], ...] = (
    _read_house,
    _read_custom_concepts,
    _read_captions,
    _read_folders,
)
