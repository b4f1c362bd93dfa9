"""The feeder: Ray Data streams what a task's `Feed` prepares to a training worker, in the order of the steps.

Each training worker has its own stream, which can begin at any step. The stream's data workers are Ray actors. Each
keeps the feed, with what it has read of the plan and of the picture index, until the stream ends. They prepare steps
in advance up to the stream's limit in Ray's object store.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.errors import ModelError
from model.training.task import Feed, Prepared
from stages.contract import StageError

#: Steps are sent in blocks of about this size, because each block costs Ray some milliseconds whatever its size.
BLOCK_BYTES = 32 * 2**20
_MAX_STEPS_PER_BLOCK = 16
#: Ray plans all blocks of a dataset first, at a millisecond each, so a long stream is cut into datasets.
_BLOCKS_PER_DATASET = 1000
#: Blocks of each data worker in the object store: the one in the making, and those that wait for the training.
_BLOCKS_PER_WORKER = 12
_PAUSE_SECONDS = 0.03


def stream(feed: Feed, steps: range, rank: int, world: int, *, workers: int) -> Generator[Prepared]:
    """What `feed` prepares for these steps of a training worker, by `workers` data workers.

    This process prepares the first step, to measure the size of a step and to let the training begin while the data
    workers start. Close the generator to end them before the last step.

    Raises:
        StageError: `feed` raised it for the step that is due.
    """
    if not steps:
        return
    first = feed.prepare(steps[0], rank, world)
    yield first
    if len(steps) == 1:
        return
    size = sum(array.nbytes for array in first.values())
    length = min(max(1, BLOCK_BYTES // size), _MAX_STEPS_PER_BLOCK)
    for part in _cut(steps[1:], length * _BLOCKS_PER_DATASET):
        blocks = _blocks(feed, part, rank, world, workers=workers, length=length, memory=length * size)
        with closing(blocks):
            for block in blocks:
                yield from unpack(block)


def _blocks(
    feed: Feed, steps: range, rank: int, world: int, *, workers: int, length: int, memory: int
) -> Generator[pa.Table]:
    """Blocks of `length` steps in order; `memory` is the size of a block in bytes."""
    import ray.data

    tasks = [{"first": part[0], "end": part[-1] + 1} for part in _cut(steps, length)]
    dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        _DataWorker,
        fn_constructor_args=(feed, rank, world),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=4),
        num_cpus=0,  # the training workers may have taken all CPUs; Ray would wait for ever
        label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},  # the steps stay on this machine
    )
    context = dataset.context
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
        object_store_memory=workers * _BLOCKS_PER_WORKER * memory
    )
    context.target_max_block_size = None  # the steps of a task stay in one block
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, _Throttle]
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    tables = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1))
    with closing(tables):
        yield from tables


def _cut(steps: range, length: int) -> Iterator[range]:
    for start in range(0, len(steps), length):
        yield steps[start : start + length]


class _Throttle:
    """An `ExecutionCallback` of Ray Data that pauses each iteration of its scheduling loop.

    When enough steps are prepared, the loop would run without a pause: it took two thirds of a core in the training
    process. The pause does not slow the data workers down, for each has its next task before it finishes one.
    """

    def before_execution_starts(self, executor: Any) -> None:
        """Do nothing."""

    def on_execution_step(self, executor: Any) -> None:
        """Pause after an iteration."""
        time.sleep(_PAUSE_SECONDS)

    def after_execution_succeeds(self, executor: Any) -> None: ...

    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...


class _DataWorker:
    """An actor of the stream."""

    def __init__(self, feed: Feed, rank: int, world: int) -> None:
        self.feed, self.rank, self.world = feed, rank, world

    def __call__(self, task: pa.Table) -> pa.Table:
        """The prepared steps from "first" up to, without, "end"; an error ends them."""
        (first,), (end,) = task["first"].to_pylist(), task["end"].to_pylist()
        found: list[Prepared] = []
        for step in range(first, end):
            try:
                found.append(self.feed.prepare(step, self.rank, self.world))
            except (ModelError, StageError) as error:
                return pack(found, str(error))
        return pack(found)


# --- steps as rows of Arrow tables ---------------------------------------------------------------------------------


def pack(steps: Sequence[Prepared], error: str | None = None) -> pa.Table:
    """A row for each step and a column for each array; with `error`, a last row that holds only the error.

    An array may have another shape and dtype in each step. Packing copies it once, reading does not copy it.
    """
    nothing = np.empty(0, np.uint8)
    names = dict.fromkeys(name for step in steps for name in step)
    broken: list[Prepared] = [] if error is None else [{}]
    columns = {name: _column([step.get(name, nothing) for step in [*steps, *broken]]) for name in names}
    errors = pa.array([None] * len(steps) + [error] * len(broken), pa.string())
    return pa.table({"error": errors, **columns})


def unpack(table: pa.Table) -> Iterator[Prepared]:
    """The steps of a table of `pack`; raises its error, if it has one, as StageError."""
    for row, error in enumerate(table["error"].to_pylist()):
        if error is not None:
            raise StageError(error)
        yield {name: _array(table[name][row]) for name in table.column_names if name != "error"}


def _column(arrays: Sequence[NDArray[Any]]) -> pa.Array:
    parts = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays]
    ends = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
    data = pa.Array.from_buffers(
        pa.large_binary(), len(parts), [None, pa.py_buffer(ends), pa.py_buffer(np.concatenate(parts))]
    )
    dtypes = pa.array([array.dtype.str for array in arrays])
    shapes = pa.array([array.shape for array in arrays], pa.list_(pa.int64()))
    return pa.StructArray.from_arrays([dtypes, shapes, data], names=["dtype", "shape", "data"])


def _array(scalar: pa.StructScalar) -> NDArray[Any]:
    array = np.frombuffer(scalar["data"].as_buffer(), dtype=scalar["dtype"].as_py())
    return array.reshape(scalar["shape"].as_py())
