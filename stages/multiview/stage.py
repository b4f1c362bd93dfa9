"""Stage `multiview`: two views of one object, from one or several folders, with Ray Data.

MVImgNet's layout, where pairs are chosen by the angle between their cameras:

    ROOT/class_label/instance_id/images/*.jpg
    ROOT/class_label/instance_id/sparse/0/images.bin (or images.txt)
    ROOT/class_label/instance_id/masks/*.jpg.png (optional): white on the object
    ROOT/mvimgnet_category.txt (optional): lines "class_label,class name"

A plain layout, where nothing is known of the cameras and any two pictures of a subject make a pair:

    ROOT/subject/*.jpg (jpeg, png, webp); masks/ and the category file as above

An instance that cannot be read is left out with a warning; a frame that cannot be read, or whose mask shows no object,
is left out of its instance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from stages.contract import StageContext, StageError, StageResult
from stages.data.datasets import ROWS_PER_FILE, write_dataset, write_part
from stages.data.schemas import FRAMES, PAIRS
from stages.multiview.config import MultiviewConfig
from stages.multiview.frames import Instance, find_instances, read_instances
from stages.multiview.pairs import DRAWN, View, balance, view_pairs
from stages.ray_tools.tasks import set_data_context

_INSTANCES_PER_TASK = 64
_WARNINGS = 5


def run(context: StageContext) -> StageResult:
    """Write `frames/` and `pairs/`."""
    settings, seed = context.config.multiview, context.config.run.seed
    roots = [Path(folder).expanduser().resolve() for folder in settings.folders]
    instances, damaged = find(roots or [(context.inputs["microworld"] / "mvimgnet").resolve()])
    frames, pairs = _FrameWriter(context.output / "frames"), _PairFinder(settings, seed)
    lost_frames = 0
    for batch in _read(instances, settings):
        problems = batch.filter(batch["frame_id"].is_null())
        damaged += [row["problem"] for row in problems.to_pylist() if row["is_instance"]]
        lost_frames += sum(not row["is_instance"] for row in problems.to_pylist())
        whole = batch.filter(batch["frame_id"].is_valid())
        frames.add(whole)
        pairs.add(whole)
        context.report.progress(min(pairs.instances + len(damaged), len(instances)), len(instances), "reading views")
    frames.close()
    for text in damaged[:_WARNINGS]:
        context.report.warning(f"left out {text}")
    if not frames.rows:
        raise StageError(f"multiview.folders: none of {len(instances)} instances is readable; first: {damaged[0]}")
    found = balance(pairs.close(), settings.pairs_per_category)
    if not found.num_rows:
        raise StageError(
            f"multiview found no pair of views between {settings.min_angle_degrees:g} and "
            f"{settings.max_angle_degrees:g} degrees apart among {frames.rows} frames; widen the range with "
            "--set multiview.min_angle_degrees=... and --set multiview.max_angle_degrees=..."
        )
    write_dataset(context.output / "pairs", found, PAIRS)
    return StageResult(
        rows={"frames": frames.rows, "pairs": found.num_rows}, metrics=_metrics(found, len(damaged), lost_frames)
    )


def find(roots: list[Path]) -> tuple[list[Instance], list[str]]:
    """The instances below the roots, and why some are left out.

    Raises:
        StageError: A root is no folder, or holds no instance.
    """
    for root in roots:
        if not root.is_dir():
            raise StageError(f"multiview.folders: there is no folder {root}.")
    instances, repeated = find_instances(roots)
    for root in roots:
        if not any(Path(instance.folder).is_relative_to(root) for instance in instances):
            raise StageError(
                f"multiview.folders: {root} holds neither class_label/instance_id/ with images/ and sparse/0/ "
                "(MVImgNet's layout) nor folders with the pictures of a subject each."
            )
    return instances, repeated


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


def _read(instances: list[Instance], settings: MultiviewConfig) -> Iterator[pa.Table]:
    """Batches of frames (schema `READ`) in the instances' order; rows without an id tell what could not be read."""
    set_data_context()
    found = ray.data.from_items(
        [asdict(instance) for instance in instances],
        override_num_blocks=math.ceil(len(instances) / _INSTANCES_PER_TASK),
    ).map_batches(
        read_instances,
        fn_kwargs={"image_size": settings.image_size, "min_foreground": settings.min_foreground},
        batch_format="pyarrow",
        batch_size=8,
    )
    yield from found.iter_batches(batch_format="pyarrow", batch_size=None)


class _FrameWriter:
    """Writes frames, a file whenever there are enough for one.

    Frames are sorted by id within a file. Which file they are in follows the order in which they come.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = 0
        self._waiting: list[pa.Table] = []
        self._parts = 0

    def add(self, frames: pa.Table) -> None:
        """Take the next frames."""
        self.rows += frames.num_rows
        self._waiting.append(frames)
        waiting = pa.concat_tables(self._waiting)
        while waiting.num_rows >= ROWS_PER_FILE:
            self._write(waiting.slice(0, ROWS_PER_FILE))
            waiting = waiting.slice(ROWS_PER_FILE)
        self._waiting = [waiting]

    def close(self) -> None:
        """Write the rest."""
        self._write(pa.concat_tables(self._waiting))

    def _write(self, frames: pa.Table) -> None:
        write_part(self.folder, self._parts, frames.sort_by("frame_id"), FRAMES)
        self._parts += 1


class _PairFinder:
    """Finds each instance's pairs when the frames of the next one come; holds the cameras of one instance only."""

    def __init__(self, settings: MultiviewConfig, seed: int) -> None:
        self.settings = settings
        self.seed = seed
        self.instances = 0
        self._tables: list[pa.Table] = [DRAWN.empty_table()]
        self._instance: tuple[str, str] | None = None
        self._views: list[View] = []

    def add(self, frames: pa.Table) -> None:
        """Take the next frames; those of an instance come one after the other."""
        for row in frames.select(["frame_id", "category", "instance", "rotation"]).to_pylist():
            instance = (row["category"], row["instance"])
            if instance != self._instance:
                self._finish()
                self._instance = instance
                self.instances += 1
            rotation = None if row["rotation"] is None else tuple(row["rotation"])
            self._views.append(View(frame_id=row["frame_id"], rotation=rotation))

    def close(self) -> pa.Table:
        """All pairs (schema `DRAWN`)."""
        self._finish()
        return pa.concat_tables(self._tables)

    def _finish(self) -> None:
        if self._instance is None:
            return
        settings, (category, instance) = self.settings, self._instance
        limits = (settings.min_angle_degrees, settings.max_angle_degrees)
        named: dict[str, Any] = {"category": category, "instance": instance}
        pairs = [named | pair for pair in view_pairs(self._views, limits, settings.pairs_per_instance, self.seed)]
        self._tables.append(pa.Table.from_pylist(pairs, schema=DRAWN))
        self._views = []
