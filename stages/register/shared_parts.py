"""The parts that versions of models share: backbone and image encoders. The registry keeps each once, by its content.

    <where MLflow keeps the experiment's files>/
        models/m-.../artifacts/   a version: adapter, code, settings, and the digests of its parts
        parts/<digest>/           a part's files
        parts/<digest>.json       their checksums, written last: the part is whole

A digest is the SHA-256 of the checksums. A part from the hub is not stored: a version names its revision and files.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from mlflow import MlflowClient
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from model.backbone_layout import check_backbone_files
from model.checksums import file_checksum
from model.errors import BackboneError
from stages.config import Config
from stages.contract import Reporter
from stages.inference import backbone_location
from stages.local_copies import local_copy
from stages.registered_model import PARTS
from stages.storage import StorePath, store_path

#: Beside its parts, a model in diffusers' layout may hold itself once more in one file.
_INDEX, _SINGLE_FILES = "model_index.json", (".safetensors", ".ckpt")
#: Of image encoders.
_WEIGHTS = (".safetensors", ".bin")

#: What a version's settings say of a part.
Part = dict[str, Any]


def parts_location(client: MlflowClient, run_id: str) -> str:
    """The URI of the folder with the parts, beside the models of a run's experiment."""
    experiment = client.get_experiment(client.get_run(run_id).info.experiment_id)
    return f"{experiment.artifact_location.rstrip('/')}/{PARTS}"


def part_locations(config: Config, inputs: Mapping[str, StorePath]) -> dict[str, str]:
    """The folder or hub id of each part of the model; parts inside the backbone are left out.

    `image_encoder_0` is the first of `backbone.image_encoders`, and `clip` finds the words for subjects.
    """
    backbone = backbone_location(config.backbone, inputs)
    named = {f"image_encoder_{number}": name for number, name in enumerate(config.backbone.image_encoders)}
    named["clip"] = config.evaluate.clip
    outside = {part: name for part, name in named.items() if not _is_inside(name, store_path(backbone))}
    return {"backbone": backbone, **outside}


def _is_inside(name: str, backbone: StorePath) -> bool:
    return not Path(name).is_absolute() and "://" not in name and (backbone / name).is_dir()


def store_parts(locations: Mapping[str, str], place: str, report: Reporter, *, again: bool = False) -> dict[str, Part]:
    """Store the parts that are folders or files, unless they are there; returns what a version's settings say of each.

    Args:
        locations: See `part_locations`.
        place: See `parts_location`.
        report: For the progress, and for parts whose revision is not known.
        again: Store also what is there: it may be damaged.
    """
    parts: dict[str, Part] = {}
    for name, location in locations.items():
        path = store_path(location)
        is_here = path.is_dir() or path.is_file()
        parts[name] = (
            _store(name, local_copy(path), place, report, again) if is_here else _of_hub(name, location, report)
        )
    return parts


def _store(name: str, path: Path, place: str, report: Reporter, again: bool) -> Part:
    words = name.replace("_", " ")
    report.progress(0, 0, f"reading the {words}")
    folder, files = (path, _files(path)) if path.is_dir() else (path.parent, [PurePath(path.name)])
    checksums = {file.as_posix(): file_checksum(folder / file) for file in files}
    digest = hashlib.sha256(json.dumps(checksums, sort_keys=True).encode()).hexdigest()
    repository, listing = get_artifact_repository(place), f"{digest}.json"
    if again or listing not in {item.path for item in repository.list_artifacts()}:
        for number, file in enumerate(files):
            report.progress(number, len(files), f"storing the {words}")
            repository.log_artifact(str(folder / file), (digest / file.parent).as_posix())
        with tempfile.TemporaryDirectory() as temporary:
            (Path(temporary) / listing).write_text(json.dumps(checksums, indent=2) + "\n")
            repository.log_artifact(str(Path(temporary) / listing))
    return {"digest": digest, "checksums": checksums, "file": "" if path.is_dir() else path.name}


def _files(folder: Path) -> list[PurePath]:
    """The files of a model's folder: none of Git or of the hub's client, and no second copy of all weights."""
    found = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    visible = [file for file in found if not any(part.startswith(".") for part in file.parts)]
    if not (folder / _INDEX).is_file():
        return list(visible)
    return [file for file in visible if len(file.parts) > 1 or file.suffix not in _SINGLE_FILES]


def _of_hub(name: str, repository: str, report: Reporter) -> Part:
    """A part on the hub: as this machine has it in its cache, for that is what was used."""
    snapshot = _snapshot(repository)
    if snapshot is None or not _is_whole(name, snapshot):  # the machine of a worker has loaded it
        report.warning(
            f"this machine's cache has not all of {repository}: the version names no revision, and loads the latest"
        )
        return {"hub": repository, "revision": None, "files": None}
    files = sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())
    return {"hub": repository, "revision": snapshot.name, "files": files}


def _snapshot(repository: str) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except (OSError, ValueError):
        return None


def _is_whole(name: str, snapshot: Path) -> bool:
    """Whether the files of a part are there: some may have read its tokenizer only."""
    if name != "backbone":
        return any(file.suffix in _WEIGHTS for file in snapshot.iterdir())
    try:
        check_backbone_files(snapshot)
    except BackboneError:
        return False
    return True
