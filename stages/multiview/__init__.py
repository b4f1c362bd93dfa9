"""Stage `multiview`: two views of one object, from a folder in MVImgNet's layout, with Ray Data.

    ROOT/class_label/instance_id/images/*.jpg
    ROOT/class_label/instance_id/sparse/0/images.bin (or images.txt)
    ROOT/mvimgnet_category.txt (optional): lines "class_label,class name"

An instance that cannot be read is left out with a warning; a frame that cannot be read is left out of its instance.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from stages.config import MultiviewConfig
from stages.datasets import ROWS_PER_FILE, write_dataset, write_part
from stages.multiview.frames import category_names, find_instances, read_instances
from stages.multiview.pairs import View, view_pairs
from stages.schemas import FRAMES, PAIRS
from stages.stage import StageContext, StageError, StageResult

_INSTANCES_PER_TASK = 64
_WARNINGS = 5


def run(context: StageContext) -> StageResult:
    """Write `frames/` and `pairs/`."""
    settings, seed = context.config.multiview, context.config.run.seed
    root = Path(settings.folder).expanduser() if settings.folder else context.inputs["microworld"] / "mvimgnet"
    root = root.resolve()
    folders = find_instances(root)
    if not folders:
        raise StageError(
            f"multiview.folder: {root} holds no class_label/instance_id/ with images/ and sparse/0/; "
            "MVImgNet's layout is expected there."
        )
    writer = _FrameWriter(context.output / "frames")
    damaged: list[str] = []
    lost_frames = 0
    for batch in _read(folders, category_names(root), settings):
        problems = batch.filter(batch["frame_id"].is_null())
        damaged += [row["problem"] for row in problems.to_pylist() if row["is_instance"]]
        lost_frames += sum(not row["is_instance"] for row in problems.to_pylist())
        writer.add(batch.filter(batch["frame_id"].is_valid()))
        context.report.progress(len(writer.views) + len(damaged), len(folders), "reading turn-table sequences")
    writer.close()
    for text in damaged[:_WARNINGS]:
        context.report.warning(f"left out {text}")
    if not writer.rows:
        raise StageError(
            f"multiview.folder: none of {len(folders)} instances in {root} is readable; first: {damaged[0]}"
        )
    pairs = find_pairs(writer.views, settings, seed)
    if not pairs.num_rows:
        raise StageError(
            f"multiview found no pair of views between {settings.min_angle_degrees:g} and "
            f"{settings.max_angle_degrees:g} degrees apart among {writer.rows} frames; widen the range with "
            "--set multiview.min_angle_degrees=... and --set multiview.max_angle_degrees=..."
        )
    write_dataset(context.output / "pairs", pairs, PAIRS)
    return StageResult(
        rows={"frames": writer.rows, "pairs": pairs.num_rows},
        metrics={
            "damaged_instances": float(len(damaged)),
            "lost_frames": float(lost_frames),
            "median_angle_degrees": float(np.median(pairs["angle_degrees"].to_numpy())),
        },
    )


def _read(folders: list[Path], names: dict[str, str], settings: MultiviewConfig) -> Iterator[pa.Table]:
    """Batches of frames (schema `READ`) in the order of the folders; rows without an id tell what could not be read."""
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    found = ray.data.from_items(
        [{"folder": str(folder)} for folder in folders],
        override_num_blocks=math.ceil(len(folders) / _INSTANCES_PER_TASK),
    ).map_batches(
        read_instances,
        fn_kwargs={"names": names, "image_size": settings.image_size},
        batch_format="pyarrow",
        batch_size=8,
    )
    yield from found.iter_batches(batch_format="pyarrow", batch_size=None)


class _FrameWriter:
    """Writes frames, a file whenever there are enough for one, and remembers their cameras.

    Frames are sorted by id within a file. Which file they are in follows the order in which they come.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.views: dict[tuple[str, str], list[View]] = defaultdict(list)
        self.rows = 0
        self._waiting: list[pa.Table] = []
        self._parts = 0

    def add(self, frames: pa.Table) -> None:
        """Take the next frames."""
        for row in frames.select(["frame_id", "category", "instance", "rotation"]).to_pylist():
            view = View(frame_id=row["frame_id"], rotation=tuple(row["rotation"]))
            self.views[row["category"], row["instance"]].append(view)
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


def find_pairs(views: dict[tuple[str, str], list[View]], settings: MultiviewConfig, seed: int) -> pa.Table:
    """All instances' pairs (schema PAIRS)."""
    rows: list[dict[str, Any]] = []
    for (category, instance), seen in sorted(views.items()):
        limits = (settings.min_angle_degrees, settings.max_angle_degrees)
        for pair in view_pairs(seen, limits, settings.pairs_per_instance, seed):
            rows.append({"category": category, "instance": instance, **pair})
    return pa.Table.from_pylist(rows, schema=PAIRS)
