"""Reader of the training plan and of its pictures.

`check_plan` finds the errors that a plan can have before a training starts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.training.adapter_examples import PlanRow
from model.training.target_sizes import TargetSizes, phases_of
from stages.config import Config
from stages.contract import StageError
from stages.data.bulk_files import read_each
from stages.data.datasets import PictureStore, check_columns, dataset_files, read_dataset
from stages.data.schemas import FRAMES, PLAN, SAMPLES
from stages.storage import StorePath, absolute, parquet_source

_SOURCES = ("image_text", "multiview")


def target_sizes(config: Config) -> TargetSizes:
    """The sizes of the targets of the plan that a configuration describes."""
    settings, resolution = config.curriculum, config.backbone.resolution
    phases = phases_of(settings.steps, resolution, settings.first_resolution, settings.first_share)
    return TargetSizes(phases=phases, bucket_multiple=settings.bucket_multiple)


class PlanReader:
    """Returns the rows of a step. Only the path is pickled, and one part of the plan at a time is in memory.

    The stage `curriculum` writes all rows of a step into one part, so that reading can start at any step.
    """

    def __init__(self, folder: StorePath) -> None:
        self.folder = folder
        self._clear()

    def _clear(self) -> None:
        self._files: list[StorePath] = []
        self._first_steps: list[int] = []  # of each file; and at the end the number of steps
        self._part = -1
        self._table: Any = None
        self._bounds: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder = state["folder"]
        self._clear()

    def __call__(self, step: int) -> Sequence[PlanRow]:
        """The rows of a step (from 0), by slot."""
        self._open()
        self._read_part(bisect_right(self._first_steps, step) - 1)
        index = step - self._first_steps[self._part]
        start, end = int(self._bounds[index]), int(self._bounds[index + 1])
        return [PlanRow(**row) for row in self._table.slice(start, end - start).to_pylist()]

    @property
    def steps(self) -> int:
        """The number of steps."""
        self._open()
        return self._first_steps[-1]

    def parts(self, *columns: str) -> Iterator[pa.Table]:
        """Some columns of the plan, part by part."""
        self._open()
        return read_each(lambda file: _read(file, columns), self._files, self.folder)

    @property
    def references_are_targets(self) -> bool:
        """Whether every picture is its own reference."""
        tables = self.parts("reference_id", "target_id")
        return all(pc.all(pc.equal(table["reference_id"], table["target_id"])).as_py() for table in tables)

    def distinct(self, *columns: str) -> pa.Array:
        """The distinct values of some columns of the plan."""
        tables = self.parts(*columns)
        return pc.unique(pa.chunked_array([pc.unique(column) for table in tables for column in table.columns]))

    def batch_sizes(self) -> set[int]:
        """The distinct numbers of rows that steps have."""
        columns = (part["step"].to_numpy() for part in self.parts("step"))
        return {int(size) for steps in columns for size in np.unique(steps, return_counts=True)[1]}

    def step_of_mixed_sizes(self) -> int | None:
        """The first step whose targets are not all of one size; None: there is none."""
        for part in self.parts("step", "height", "width"):
            sizes = part.group_by("step").aggregate(
                [(name, kind) for name in ("height", "width") for kind in ("min", "max")]
            )
            mixed = pc.or_(
                pc.not_equal(sizes["height_min"], sizes["height_max"]),
                pc.not_equal(sizes["width_min"], sizes["width_max"]),
            )
            if pc.any(mixed).as_py():
                return int(pc.min(sizes["step"].filter(mixed)).as_py())
        return None

    def _open(self) -> None:
        if self._files:
            return
        files = dataset_files(self.folder)
        ranges = [found for found in read_each(_range_of_steps, files, self.folder) if found]
        if not ranges:
            raise StageError(f"{self.folder} holds no training example; run the stage curriculum again.")
        self._first_steps = [*(first for first, _ in ranges), ranges[-1][1] + 1]
        self._files = files[: len(ranges)]

    def _read_part(self, part: int) -> None:
        if part == self._part:
            return
        table = _read(self._files[part], ["step", *PlanRow._fields])
        steps = np.arange(self._first_steps[part], self._first_steps[part + 1] + 1)
        self._bounds = np.searchsorted(table["step"].to_numpy(), steps)
        self._table, self._part = table.select(list(PlanRow._fields)).combine_chunks(), part


def _read(file: StorePath, columns: Sequence[str]) -> pa.Table:
    return pq.read_table(parquet_source(file), columns=list(columns))


def _range_of_steps(file: StorePath) -> tuple[int, int] | None:
    """The first and the last step of a part of the plan, from its footer; None if it has no rows.

    Raises:
        StageError: A column is missing, or has another type.
    """
    with pq.ParquetFile(parquet_source(file)) as opened:
        metadata, schema = opened.metadata, opened.schema_arrow
    check_columns(file, schema, PLAN, ["step", *PlanRow._fields])
    if not metadata.num_rows:
        return None
    column = metadata.schema.names.index("step")
    groups = [metadata.row_group(number).column(column).statistics for number in range(metadata.num_row_groups)]
    return int(groups[0].min), int(groups[-1].max)


@dataclass(frozen=True)
class PlanPictures:
    """Returns the encoded picture with an id of the plan: a sample of `filter` or a frame of `multiview`."""

    samples: PictureStore
    frames: PictureStore

    @classmethod
    def of(cls, inputs: Mapping[str, StorePath]) -> Self:
        """The pictures in the inputs of a stage."""
        samples, frames = absolute(inputs["filter"]) / "samples", absolute(inputs["multiview"]) / "frames"
        return cls(PictureStore(samples, "sample_id"), PictureStore(frames, "frame_id"))

    def __call__(self, picture_id: str) -> bytes:
        """The encoded picture; raises StageError when there is none with this id."""
        for store in (self.samples, self.frames):
            with suppress(KeyError):
                return store[picture_id]
        raise StageError(
            f"picture {picture_id} of the plan is neither in {self.samples.folder} nor in {self.frames.folder}; "
            "run the stage curriculum again."
        )


def check_plan(plan: PlanReader, pictures: PlanPictures) -> None:
    """Check that a plan is complete and was made from these pictures.

    Raises:
        StageError: A step is missing or has targets of different sizes, a source is unknown, or a picture is in neither
            dataset; names the first.
    """
    remedy = "run the stage curriculum again."
    found = plan.distinct("step").to_numpy()
    missing = np.setdiff1d(np.arange(plan.steps), found)
    if len(missing):
        raise StageError(f"{plan.folder} lacks step {missing[0]} and holds {len(found)} of {plan.steps}; {remedy}")
    sources = plan.distinct("source").to_pylist()
    unknown = sorted(set(sources) - set(_SOURCES))
    if unknown:
        raise StageError(f"{plan.folder} has the source {unknown[0]!r}; it must be {' or '.join(_SOURCES)}; {remedy}")
    if (mixed := plan.step_of_mixed_sizes()) is not None:
        raise StageError(f"{plan.folder} has targets of different sizes in step {mixed}; {remedy}")
    _check_pictures(plan, pictures, remedy)


def _check_pictures(plan: PlanReader, pictures: PlanPictures, remedy: str) -> None:
    named = plan.distinct("reference_id", "target_id")
    samples = read_dataset(pictures.samples.folder, SAMPLES, [pictures.samples.id_column])
    frames = read_dataset(pictures.frames.folder, FRAMES, [pictures.frames.id_column])
    known = pa.chunked_array([*samples.column(0).chunks, *frames.column(0).chunks])
    lost = named.filter(pc.invert(pc.is_in(named, value_set=known)))
    if len(lost):
        raise StageError(
            f"{len(lost)} of {len(named)} pictures of the plan, such as {lost[0]}, are neither in "
            f"{pictures.samples.folder} nor in {pictures.frames.folder}; {remedy}"
        )
