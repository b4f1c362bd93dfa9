"""What is painted: held-out subjects times prompts, each with its own seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.microworld.captions import BACKGROUND_PHRASES
from model.pictures import PictureError, load_picture
from prompts.dreambench import dreambench_prompts
from stages.contract import StageError
from stages.evaluate.config import EvaluateConfig

_PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One held-out subject: the model sees the reference, the metrics compare with the other pictures."""

    name: str
    word: str
    reference: bytes
    views: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One picture to paint in every arm."""

    subject: Subject
    prompt: str
    seed: int
    ground: str | None  # the microworld's background that the prompt names


def load_subjects(folder: Path, count: int | None) -> list[Subject]:
    """The first `count` subjects of a folder, or all: when there are fewer, or without a count.

    With a `subjects.json` (a list of {"subject", "word", "pictures"}, paths relative to the folder) its order holds.
    Without one every subfolder is a subject, and the class word is its name with spaces for underscores.

    Raises:
        StageError: The folder is missing or holds no subject; a subject has fewer than two pictures, or one of them
            cannot be read.
    """
    if not folder.is_dir():
        raise StageError(f"evaluate.subjects_folder: there is no folder {folder}.")
    entries = _listed(folder) if (folder / "subjects.json").is_file() else _found(folder)
    if not entries:
        raise StageError(f"{folder} holds no subjects; it needs one folder of pictures for each.")
    return [read_subject(name, word, paths) for name, word, paths in entries[:count]]


def _listed(folder: Path) -> list[tuple[str, str, list[Path]]]:
    listing = folder / "subjects.json"
    try:
        return [
            (entry["subject"], entry["word"], [folder / name for name in entry["pictures"]])
            for entry in json.loads(listing.read_text())
        ]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        needed = '{"subject": ..., "word": ..., "pictures": [...]}'
        raise StageError(f"{listing} must be a list of {needed}, one a subject ({error}).") from error


def _found(folder: Path) -> list[tuple[str, str, list[Path]]]:
    places = [place for place in sorted(folder.iterdir()) if place.is_dir()]
    return [(place.name, place.name.replace("_", " "), picture_files(place)) for place in places]


def picture_files(folder: Path) -> list[Path]:
    """The pictures in a folder, by name."""
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _PICTURE_SUFFIXES]


def read_subject(name: str, word: str, paths: Sequence[Path]) -> Subject:
    """A subject from its picture files, the reference first.

    Raises:
        StageError: There are fewer than two, or one of them cannot be read.
    """
    if len(paths) < 2:
        raise StageError(f"Subject {name} has {len(paths)} pictures; one to show and one to compare with are needed.")
    try:
        for path in paths:
            load_picture(path)
    except PictureError as error:
        raise StageError(f"Subject {name}: {error}") from error
    reference, *views = (path.read_bytes() for path in paths)
    return Subject(name=name, word=word, reference=reference, views=tuple(views))


def templates_for(word: str, config: EvaluateConfig) -> Sequence[str]:
    """The prompts of a subject with this class word, still with `{word}` in them."""
    if config.prompts:
        return config.prompts
    if config.similarity == "judge":
        return [f"a photo of a {{word}} {phrases[0]}" for phrases in BACKGROUND_PHRASES.values()]
    return dreambench_prompts(word)


def make_cases(subjects: Sequence[Subject], config: EvaluateConfig, seed: int) -> list[Case]:
    """`prompts_per_subject` cases a subject; the prompts take turns over all subjects, no two cases share a seed."""
    cases = []
    for number, subject in enumerate(subjects):
        templates = templates_for(subject.word, config)
        for turn in range(config.prompts_per_subject):
            place = number * config.prompts_per_subject + turn
            template = templates[place % len(templates)]
            prompt, ground = template.replace("{word}", subject.word), ground_of(template)
            cases.append(Case(subject=subject, prompt=prompt, seed=seed + place, ground=ground))
    return cases


def ground_of(prompt: str) -> str | None:
    """The microworld's background that a prompt names, None when it names none."""
    named = (ground for ground, phrases in BACKGROUND_PHRASES.items() if any(phrase in prompt for phrase in phrases))
    return next(named, None)


def evaluation_id(cases: Sequence[Case], config: EvaluateConfig, judge: str) -> str:
    """What two scores must share to be comparable: pictures, prompts, seeds, metrics.

    Args:
        cases: What is painted.
        config: Which metrics.
        judge: A digest of the weights that score.
    """
    digest = hashlib.sha256(f"{config.similarity} {config.clip} {config.dino} {judge}".encode())
    for case in cases:
        digest.update(f"\n{case.prompt}\t{case.seed}\t{case.subject.word}".encode())
        for picture in (case.subject.reference, *case.subject.views):
            digest.update(hashlib.sha256(picture).digest())
    return digest.hexdigest()[:24]
