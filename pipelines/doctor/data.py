"""Whether the user's data are there in the layouts that the stages read. The stages' own checks look at them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

from pipelines.config.paths import local_paths
from pipelines.doctor.captioned_pictures import check_pictures_folder
from pipelines.doctor.findings import Finding, Setup, counted, good, problem, unknown, warning
from pipelines.fingerprint import settings_read
from pipelines.graph import STAGES
from stages.config import Config
from stages.contract import Reporter, StageError
from stages.storage import StorageError
from stages.storage_errors import storage_error

#: Of these models there is a finding of another kind.
_MODELS = (
    *("backbone.", "evaluate.clip", "evaluate.dino"),
    *("filter.scoring.similarity_clip", "filter.scoring.aesthetic_clip", "filter.scoring.safety_checker"),
)

#: How the objects of the layouts are paired.
_LAYOUTS = {
    "colmap": "with COLMAP's cameras (MVImgNet)",
    "co3d": "with CO3D's cameras",
    "pictures": "without cameras, of which any two pictures make a pair",
}

_ADVICE = "correct the path, or get the data (docs/datasets.md)"

#: Settings that name more than one folder: those that are there are looked at when another one is not.
_LISTS = ("multiview.folders", "customize.subjects")


def check(setup: Setup) -> Iterator[Finding]:
    """Files that are not there, then the data of each stage."""
    missing = list(dict.fromkeys(missing_paths(setup)))
    yield from (problem(f"{key}: there is no file or folder {path}; {_ADVICE}") for key, path in missing)
    stages: dict[str, Callable[[Setup], Iterator[Finding]]] = {
        "ingest.metadata": _metadata,
        "filter.pictures_folder": check_pictures_folder,
        "multiview.folders": _view_folders,
        "customize.subjects": _subjects,
        "evaluate.subjects_folder": _evaluation_subjects,
    }
    absent = {stage.name: stage.absent_when for stage in STAGES if stage.name not in setup.graph.stages}
    for key, check_stage in stages.items():
        name = key.partition(".")[0]
        if name in absent:
            yield good(f"the run is without {name} ({absent[name]})")
        elif key in _LISTS or key not in dict(missing):
            try:
                yield from check_stage(setup)
            except (StageError, StorageError) as error:
                yield problem(str(error).rstrip("."))
            except Exception as error:  # each store's client has its own; the data of the other stages count
                yield _other_error(key, setup.config, error)


def _other_error(key: str, config: Config, error: Exception) -> Finding:
    places = attrgetter(key)(config)
    place = ", ".join(places) if isinstance(places, list) else places
    if sentence := storage_error(error, f"{key}: {place}"):
        return problem(sentence.rstrip("."))
    return unknown(f"{key} could not be checked: {type(error).__name__}: {' '.join(str(error).split())[:300]}")


def missing_paths(setup: Setup) -> Iterator[tuple[str, Path]]:
    """The files and folders that some stage reads and that are not there, each with its setting."""
    for stage in setup.graph.stages.values():
        for key, path in local_paths(settings_read(setup.config, stage)):
            if not key.startswith(_MODELS) and not path.exists():
                yield key, path


def _is_there(folder: str) -> bool:
    """Whether a folder is there, or can be asked for: what is not there has a finding of its own."""
    return "://" in folder or Path(folder).exists()


def _metadata(setup: Setup) -> Iterator[Finding]:
    """LAION's columns, with those that the thresholds of `filter` need."""
    settings = setup.config.ingest
    if settings.metadata is None:
        return
    from stages.filter.score_columns import missing_columns
    from stages.ingest.metadata import count_rows, found_columns, metadata_files

    files = metadata_files(settings.metadata)
    found, rows = found_columns(files, settings), count_rows(files)
    if not rows:
        yield problem(f"ingest.metadata: {settings.metadata} has no rows")
        return
    yield good(f"ingest.metadata: {counted(rows, 'row')} in {counted(len(files.paths), 'file')} of {settings.metadata}")
    if "filter" in setup.graph.stages and (sentence := missing_columns(found, setup.config.filter)):
        yield problem(sentence.rstrip("."))


def _view_folders(setup: Setup) -> Iterator[Finding]:
    """Each folder of view pairs."""
    folders = list(filter(_is_there, setup.config.multiview.folders))
    if not folders:
        return
    from stages.multiview.stage import find_all, root_of

    for folder in folders:
        try:
            instances, left_out = find_all([root_of(folder)])
        except StageError as error:
            yield problem(str(error).rstrip("."))
            continue
        counts = Counter(_LAYOUTS[instance.layout] for instance in instances)
        listed = ", ".join(f"{count:,} {words}" for words, count in sorted(counts.items()))
        yield good(f"multiview.folders: {counted(len(instances), 'object')} in {folder}: {listed}")
        yield from (warning(f"multiview.folders: left out {text}") for text in left_out[:1])


def _subjects(setup: Setup) -> Iterator[Finding]:
    """The pictures of the concepts to learn."""
    settings, notes = setup.config.customize, list[str]()
    pairs = zip(settings.subjects or [], settings.words, strict=False)  # without subjects there are words all the same
    listed = [(folder, word) for folder, word in pairs if _is_there(folder)]
    if not listed:
        return
    from stages.customize.subjects import find_subjects, read_captions, read_pictures

    report = _reporter(notes)
    for folder, word in listed:
        alone = dataclasses.replace(settings, subjects=[folder], words=[word], placeholders=[], joint=False)
        try:
            (subject,) = find_subjects(alone, {}, report)
            pictures = read_pictures(subject, setup.config.backbone.resolution, report)
            if settings.prompts == "captions":
                read_captions(list(pictures), subject)
            yield good(f"customize.subjects: {counted(len(pictures), 'picture')} in {folder}, class word {word}")
        except StageError as error:
            yield problem(f"customize.subjects: {str(error).rstrip('.')}")
    yield from map(warning, notes)


def _reporter(notes: list[str]) -> Reporter:
    """Keeps a stage's warnings."""

    def emit(event: Any) -> None:
        if event["event"] == "warning":
            notes.append(event["text"].rstrip("."))

    return Reporter(emit=emit)


def _evaluation_subjects(setup: Setup) -> Iterator[Finding]:
    """DreamBench, or other held-out subjects."""
    settings = setup.config.evaluate
    if settings.subjects_folder is None:  # the microworld's
        return
    from stages.evaluate.cases import load_subjects  # imports torch, which the micro world's need not
    from stages.subject_lists import list_subjects

    folder = Path(settings.subjects_folder)
    subjects = load_subjects(folder, settings.subjects)
    words = ", ".join(dict.fromkeys(subject.word for subject in subjects))
    own = "the folder's lists" if any(subject.prompts for subject in subjects) else "DreamBench's lists"
    prompts = "evaluate.prompts" if settings.prompts else own
    yield good(f"evaluate.subjects_folder: {counted(len(subjects), 'subject')} ({words}), prompts from {prompts}")
    yield from map(warning, list_subjects(folder)[1])
