"""Stage `multiview`: pairs of views of one object, from one or more folders, with Ray Data.

Pairs are chosen by the angle between their cameras in MVImgNet's layout

    ROOT/class_label/instance_id/images/*.jpg, also in subfolders
    ROOT/class_label/instance_id/sparse/0/images.bin (or images.txt; or both directly in sparse/)
    ROOT/class_label/instance_id/masks/*.jpg.png (optional): white on the object, in the same subfolders
    ROOT/mvimgnet_category.txt (optional): lines "class_label,class name"

and in CO3D's, where the root may also be one category:

    ROOT/category/frame_annotations.jgz
    ROOT/category/sequence/images/*.jpg, with masks/*.png (optional)

In plain layouts the cameras are unknown, and any two pictures of a subject make a pair:

    ROOT/subject/*.jpg (jpeg, png, webp, gif); masks/ and the category file as above, or DreamBench's list of classes
    ROOT/subject/images/*.jpg
    ROOT/class/subject/*.jpg
    ROOT/*.jpg: the root is one subject

Names that start with "." or "_" do not count. An instance that cannot be read is left out with a warning. A frame that
cannot be read, or whose mask shows no object, is left out of its instance. Of a long video, as many frames are read,
evenly spread, as its pairs can have.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.files import TextError, printable_name
from model.pictures.decoding import left_out_pictures
from stages.contract import StageContext, StageError, StageResult
from stages.data.datasets import ROWS_PER_FILE, write_dataset, write_part
from stages.data.schemas import FRAMES, PAIRS
from stages.multiview.config import MultiviewConfig
from stages.multiview.frames import instance_table, read_instances
from stages.multiview.layouts import Instance, find_instances
from stages.multiview.pairs import RANKED_PAIRS, View, balance, view_pairs
from stages.ray_tools.mapping import Workers, map_on_workers
from stages.storage import StorageError, StorePath, absolute, store_path

_INSTANCES_PER_TASK = 64
_BYTES_AT_ONCE = 64_000_000  # of frames, in a worker
_BYTES_PER_FILE = 1_000_000_000  # an Arrow array of bytes holds 2 GB
_WARNINGS = 5


def run(context: StageContext) -> StageResult:
    """Write `frames/` and `pairs/`."""
    settings = context.config.multiview
    assert settings.image_size is not None  # a loaded configuration has a number
    image_size = settings.image_size
    roots = [root_of(folder) for folder in settings.folders]
    instances, damaged = find_all(roots or [absolute(context.inputs["microworld"]) / "mvimgnet"])
    frames = _FrameWriter(context.output / "frames")
    pairs = _PairFinder(settings, context.config.run.seed)
    lost_frames: list[str] = []
    for batch in _read(instances, image_size, settings):
        problems = batch.filter(batch["frame_id"].is_null()).to_pylist()
        damaged += [row["problem"] for row in problems if row["is_instance"]]
        lost_frames += [row["problem"] for row in problems if not row["is_instance"]]
        readable = batch.filter(batch["frame_id"].is_valid())
        frames.add(readable)
        pairs.add(readable)
        context.report.progress(min(pairs.instances + len(damaged), len(instances)), len(instances), "reading views")
    frames.close()
    for text in damaged[:_WARNINGS]:
        context.report.warning(f"left out {text}")
    for text in _notes(instances, lost_frames)[:_WARNINGS]:
        context.report.warning(text)
    if not frames.rows:
        raise StageError(f"multiview.folders: none of {len(instances)} instances is readable; first: {damaged[0]}")
    found = balance(pairs.close(), settings.pairs_per_category)
    if not found.num_rows:
        raise StageError(_no_pairs(frames.rows, settings))
    write_dataset(context.output / "pairs", found, PAIRS)
    metrics = _metrics(found, len(damaged), len(lost_frames))
    return StageResult(rows={"frames": frames.rows, "pairs": found.num_rows}, metrics=metrics)


def root_of(folder: str) -> StorePath:
    """A folder of `multiview.folders`.

    Raises:
        StageError: It is a URI that nothing installed reads.
    """
    try:
        place = store_path(folder)
    except StorageError as error:
        raise StageError(f"multiview.folders: {error}") from error
    return Path(os.path.realpath(place.expanduser())) if isinstance(place, Path) else place


def _notes(instances: list[Instance], lost_frames: list[str]) -> list[str]:
    """What the user should know of frames that are left out of instances that are used."""
    hidden = (left_out_pictures(instance.folder) for instance in instances if instance.layout == "pictures")
    lost = [f"{len(lost_frames)} frames are left out; first: {lost_frames[0]}"] if lost_frames else []
    return [*lost, *filter(None, hidden)]


def _no_pairs(frames: int, settings: MultiviewConfig) -> str:
    return (
        f"multiview found no pair of views between {settings.min_angle_degrees:g} and "
        f"{settings.max_angle_degrees:g} degrees apart among {frames} frames; widen the range with "
        "--set multiview.min_angle_degrees=... and --set multiview.max_angle_degrees=..."
    )


def find_all(roots: Sequence[StorePath]) -> tuple[list[Instance], list[str]]:
    """The instances below the roots, and a description of those left out.

    Raises:
        StageError: A root is not a folder, or holds no instance.
    """
    for root in roots:
        if not (os.path.isdir(root) if isinstance(root, Path) else root.is_dir()):
            raise StageError(f"multiview.folders: there is no folder {printable_name(str(root))}.")
    try:
        instances, left_out = find_instances(roots)
    except TextError as error:
        raise StageError(f"multiview.folders: {error}") from error
    for root in roots:
        if not any(root in (instance.folder, *instance.folder.parents) for instance in instances):
            first = f" Left out: {left_out[0]}." if left_out else ""
            raise StageError(
                f"multiview.folders: {printable_name(str(root))} holds neither class_label/instance_id/ with images/ "
                "and sparse/0/ (MVImgNet's layout), nor category/frame_annotations.jgz (CO3D's), nor folders with the "
                f'pictures of a subject each; names that start with "." or "_" do not count.{first}'
            )
    return instances, left_out


def _metrics(pairs: pa.Table, damaged: int, lost_frames: int) -> dict[str, float]:
    counts = pc.value_counts(pairs["category"].combine_chunks()).field("counts").to_pylist()
    angles = pairs["angle_degrees"].drop_null().to_numpy()
    return {
        "damaged_instances": float(damaged),
        "lost_frames": float(lost_frames),
        "categories": float(len(counts)),
        "fewest_pairs_of_a_category": float(min(counts)),
        "most_pairs_of_a_category": float(max(counts)),
        **({"median_angle_degrees": float(np.median(angles))} if len(angles) else {}),
    }


def _read(instances: list[Instance], image_size: int, settings: MultiviewConfig) -> Iterator[pa.Table]:
    """Batches of frames and problems (schema `READ`) in the order of the instances."""
    table = instance_table(instances)
    yield from map_on_workers(
        _read_some,
        [table.slice(start, _INSTANCES_PER_TASK) for start in range(0, table.num_rows, _INSTANCES_PER_TASK)],
        arguments={
            "image_size": image_size,
            "min_foreground": settings.min_foreground,
            "most_frames": 2 * settings.pairs_per_instance,  # no more can be in its pairs
        },
        workers=Workers(),
    )


def _read_some(instances: pa.Table, image_size: int, min_foreground: float, most_frames: int) -> Iterator[pa.Table]:
    """Read some instances at a time, because their pictures take memory."""
    waiting: list[pa.Table] = []
    for number in range(instances.num_rows):
        waiting.append(read_instances(instances.slice(number, 1), image_size, min_foreground, most_frames))
        if sum(table.nbytes for table in waiting) >= _BYTES_AT_ONCE:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


class _FrameWriter:
    """Writes frames, sorted by id within each file. The files follow the order in which the frames arrive."""

    def __init__(self, folder: StorePath) -> None:
        self.folder = folder
        self.rows = 0
        self._waiting: list[pa.Table] = []
        self._parts = 0

    def add(self, frames: pa.Table) -> None:
        """Add the next frames."""
        self.rows += frames.num_rows
        self._waiting.append(frames)
        waiting = pa.concat_tables(self._waiting)
        while waiting.num_rows >= ROWS_PER_FILE:
            self._write(waiting.slice(0, ROWS_PER_FILE))
            waiting = waiting.slice(ROWS_PER_FILE)
        if waiting.nbytes >= _BYTES_PER_FILE:
            self._write(waiting)
            waiting = waiting.slice(waiting.num_rows)
        self._waiting = [waiting]

    def close(self) -> None:
        """Write the remaining frames."""
        self._write(pa.concat_tables(self._waiting))

    def _write(self, frames: pa.Table) -> None:
        write_part(self.folder, self._parts, frames.sort_by("frame_id"), FRAMES)
        self._parts += 1


class _PairFinder:
    """Finds the pairs of each instance as soon as the next one begins. Holds the cameras of one instance only."""

    def __init__(self, settings: MultiviewConfig, seed: int) -> None:
        self.settings = settings
        self.seed = seed
        self.instances = 0
        self._tables: list[pa.Table] = [RANKED_PAIRS.empty_table()]
        self._instance: tuple[str, str] | None = None
        self._views: list[View] = []

    def add(self, frames: pa.Table) -> None:
        """Add the next frames. The frames of an instance must be consecutive."""
        for row in frames.select(["frame_id", "category", "instance", "rotation"]).to_pylist():
            instance = (row["category"], row["instance"])
            if instance != self._instance:
                self._finish()
                self._instance = instance
                self.instances += 1
            rotation = None if row["rotation"] is None else tuple(row["rotation"])
            self._views.append(View(frame_id=row["frame_id"], rotation=rotation))

    def close(self) -> pa.Table:
        """All pairs (schema `RANKED_PAIRS`)."""
        self._finish()
        return pa.concat_tables(self._tables)

    def _finish(self) -> None:
        if self._instance is None:
            return
        settings, (category, instance) = self.settings, self._instance
        limits = (settings.min_angle_degrees, settings.max_angle_degrees)
        named: dict[str, Any] = {"category": category, "instance": instance}
        pairs = [named | pair for pair in view_pairs(self._views, limits, settings.pairs_per_instance, self.seed)]
        self._tables.append(pa.Table.from_pylist(pairs, schema=RANKED_PAIRS))
        self._views = []
