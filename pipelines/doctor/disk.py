"""Whether the run folder can be written to, and whether disks have room for what the run and the hub write."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from upath import UPath

from model.files import visible_files
from pipelines.doctor.findings import Finding, Setup, counted, good, problem, unknown, warning
from pipelines.doctor.hub import cache_folder, cached_snapshot
from pipelines.doctor.models import is_path, needed_models
from pipelines.doctor.sizes import GIGABYTE, gigabytes, training_sizes
from pipelines.errors import FOLDER_ERRORS
from stages.config import Config
from stages.contract import StageError
from stages.storage_errors import storage_error

#: Of a stored JPEG: 23 kB at 256 x 256 pixels (docs/data_plane.md).
_BYTES_PER_PIXEL = 0.35
#: Of a picture from the web that is not shrunk: 100 kB there (docs/data_plane.md), more with our quality.
_WEB_PICTURE_BYTES = 150_000
#: Of the files of a backbone, and of another model, at most: those of SDXL and of SigLIP in fp32.
_BACKBONE_BYTES, _MODEL_BYTES = 14 * GIGABYTE, 4 * GIGABYTE
#: A checkpoint has the weights and two moments of AdamW, in fp32.
_CHECKPOINT_BYTES = 12
#: What a run of the profile micro writes.
_LEAST_BYTES = 1 * GIGABYTE


def check(setup: Setup) -> Iterator[Finding]:
    """The run folder and the hub's cache."""
    folder = setup.store.folder
    if isinstance(folder, Path):
        yield from _check_folder(setup, folder)
    else:
        yield _check_store(folder)
    yield from _check_hub_cache(setup)


def _check_folder(setup: Setup, folder: Path) -> Iterator[Finding]:
    place = _existing(folder)
    if reason := _why_unwritable(folder, place):
        yield problem(f"run.folder {folder}: {reason}")
        return
    try:
        needed, parts = run_bytes(setup)
    except StageError:  # the data cannot be read, which is a finding of its own
        free = gigabytes(shutil.disk_usage(place).free)
        yield unknown(f"run.folder {folder} has {free} free; its need is known when ingest.metadata can be read")
        return
    yield check_room(f"run.folder {folder}", needed, shutil.disk_usage(place).free, parts)


def check_room(name: str, needed: int, free: int, parts: str) -> Finding:
    """Whether a disk has room."""
    text = f"{name} needs about {gigabytes(needed)} ({parts}); {gigabytes(free)} are free"
    if free < needed:
        return problem(f"{text}: free some, or use another disk")
    return warning(f"{text}, which is little more: free some") if free < 1.2 * needed else good(text)


def run_bytes(setup: Setup) -> tuple[int, str]:
    """Bytes that a run writes, as far as they are known, and of what.

    Raises:
        StageError: The metadata cannot be read.
    """
    config, needed = setup.config, {"records": _LEAST_BYTES}
    needed |= _picture_bytes(setup)
    sizes = training_sizes(config) if "train_adapter" in setup.graph.stages else None
    if sizes is not None:
        kept = config.train_adapter.trainer.keep_checkpoints + 2  # the best one, and one that is being written
        needed["checkpoints"] = kept * _CHECKPOINT_BYTES * sizes.adapter
        needed["registered model"] = 4 * (sizes.unet + sizes.vae + sizes.text + sizes.adapter)
    unknown_parts = " and ".join(_unknown_parts(config))
    rest = f"; {unknown_parts} on top" if unknown_parts else ""
    return sum(needed.values()), f"{', '.join(needed)}{rest}"


def _picture_bytes(setup: Setup) -> dict[str, int]:
    """Twice those of the captioned pictures: of `ingest`, or imported, and of `filter`."""
    config = setup.config
    if "ingest" in setup.graph.stages and config.ingest.metadata is not None:
        from stages.ingest.metadata import count_rows, metadata_files  # imports pyarrow

        rows = count_rows(metadata_files(config.ingest.metadata))
        largest = int(_BYTES_PER_PIXEL * config.backbone.stored_size(config.ingest.image_size) ** 2)
        return {counted(rows, "picture"): 2 * rows * min(largest, _WEB_PICTURE_BYTES)}
    source = config.filter.pictures_folder
    if source is None or not Path(source).is_dir():
        return {}
    return {"captioned pictures": 2 * sum(file.stat().st_size for file in visible_files(Path(source)))}


def _unknown_parts(config: Config) -> Iterator[str]:
    """What the run writes too: frames of videos, and pictures that are not on this machine."""
    source = config.filter.pictures_folder
    if source is not None and not Path(source).is_dir():
        yield "the pictures of filter.pictures_folder"
    if config.multiview.folders:
        yield "the frames of multiview.folders"


def _check_store(folder: UPath) -> Finding:
    """Whether the bucket can be listed. Whether it can be written to is not tried: that would write."""
    try:
        folder.fs.ls(folder.path, detail=False)
    except Exception as error:  # each store's client has its own
        if sentence := storage_error(error, f"run.folder {folder}"):
            return problem(sentence.rstrip("."))
        if not isinstance(error, FileNotFoundError):
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            return problem(f"run.folder {folder} cannot be read ({reason}): check its credentials and network")
    return good(f"run.folder {folder} can be read")


def _check_hub_cache(setup: Setup) -> Iterator[Finding]:
    """Whether there is room for what will be downloaded. How much that is, is not known well enough for a problem."""
    sizes: dict[str, int] = {}
    for model in needed_models(setup):
        if not is_path(model.location) and cached_snapshot(model.location) is None:
            size = _BACKBONE_BYTES if model.is_backbone else _MODEL_BYTES
            sizes[model.location] = max(size, sizes.get(model.location, 0))
    if not sizes:
        return
    needed = sum(sizes.values())
    free = shutil.disk_usage(_existing(cache_folder())).free
    text = f"the hub's cache {cache_folder()} needs up to {gigabytes(needed)} for {counted(len(sizes), 'model')}; "
    text += f"{gigabytes(free)} are free"
    yield good(text) if free > needed else warning(f"{text}: free some, or set HF_HOME to another disk")


def _why_unwritable(folder: Path, place: Path) -> str | None:
    """Why nothing can be written to a folder, of which `place` exists; None: it can."""
    error = next((code for code, applies in _errors(folder, place) if applies), None)
    return None if error is None else FOLDER_ERRORS[error]


def _errors(folder: Path, place: Path) -> Iterator[tuple[int, bool]]:
    import errno

    yield errno.EEXIST, place == folder and not place.is_dir()
    yield errno.ENOTDIR, not place.is_dir()
    yield errno.EROFS, bool(os.statvfs(place).f_flag & os.ST_RDONLY)
    yield errno.EACCES, not os.access(place, os.W_OK | os.X_OK)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if os.path.lexists(place))
