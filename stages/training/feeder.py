"""The feeder: what a task's `Feed` prepares, streamed by Ray Data to a worker of the training, in the order of steps.

Each worker of the training has a stream of its own, which begins at any step. Its data workers are Ray actors that hold
the feed, and what it has read of the plan and of the index of pictures, as long as the stream lasts. They work some
steps ahead, as far as the stream's share of Ray's object store goes; nothing else of the steps to come is held.
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

#: Steps travel in blocks of about so many bytes, for Ray takes some milliseconds for each block whatever its size.
BLOCK_BYTES = 32 * 2**20
_MOST_STEPS_A_BLOCK = 16
#: Ray plans all blocks of a dataset before it makes the first, a millisecond each: a long stream is several datasets.
_BLOCKS_A_DATASET = 1000
#: A data worker's share of the object store, in blocks: one that it makes, and those that wait for the training.
_BLOCKS_A_WORKER = 12
_PAUSE_SECONDS = 0.03


def stream(feed: Feed, steps: range, rank: int, world: int, *, workers: int) -> Generator[Prepared]:
    """What `feed` prepares for these steps of a worker of the training, by so many data workers.

    The first step is prepared here: it tells how large a step is, and the training need not wait for the data workers
    to start. Close the generator to end them before the last step.

    Raises:
        StageError: Of `feed`, when the step is due that is broken.
    """
    if not steps:
        return
    first = feed.prepare(steps[0], rank, world)
    yield first
    if len(steps) == 1:
        return
    size = sum(array.nbytes for array in first.values())
    length = min(max(1, BLOCK_BYTES // size), _MOST_STEPS_A_BLOCK)
    for some in _cut(steps[1:], length * _BLOCKS_A_DATASET):
        blocks = _blocks(feed, some, rank, world, workers=workers, length=length, memory=length * size)
        with closing(blocks):
            for block in blocks:
                yield from unpack(block)


def _blocks(
    feed: Feed, steps: range, rank: int, world: int, *, workers: int, length: int, memory: int
) -> Generator[pa.Table]:
    """Blocks of `length` steps, in order; `memory` is a block's size in bytes."""
    import ray.data

    tasks = [{"first": some[0], "end": some[-1] + 1} for some in _cut(steps, length)]
    dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        _DataWorker,
        fn_constructor_args=(feed, rank, world),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=4),
        num_cpus=0,  # the workers of the training may have taken all of them: Ray would wait for one without a word
        label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},  # nothing need travel
    )
    context = dataset.context
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
        object_store_memory=workers * _BLOCKS_A_WORKER * memory
    )
    context.target_max_block_size = None  # a task's steps stay together
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, _Patience]
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    tables = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1))
    with closing(tables):
        yield from tables


def _cut(steps: range, length: int) -> Iterator[range]:
    for start in range(0, len(steps), length):
        yield steps[start : start + length]


class _Patience:
    """An `ExecutionCallback` of Ray Data that lets its scheduling loop sleep a little in each turn.

    While enough is made ahead the loop has nothing to wait for and turns without a pause: it took two thirds of a core,
    in the process that trains. A data worker is given its next task before it is done, and does not starve meanwhile.
    """

    def before_execution_starts(self, executor: Any) -> None:
        """Nothing to do, likewise after it."""

    def on_execution_step(self, executor: Any) -> None:
        """After each turn."""
        time.sleep(_PAUSE_SECONDS)

    def after_execution_succeeds(self, executor: Any) -> None: ...

    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...


class _DataWorker:
    """What an actor of the stream does."""

    def __init__(self, feed: Feed, rank: int, world: int) -> None:
        self.feed, self.rank, self.world = feed, rank, world

    def __call__(self, task: pa.Table) -> pa.Table:
        """The prepared steps from "first" to before "end"; the last one may be broken."""
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
    """A row for every step, a column for every array; when `error` is given a last row that says what went wrong.

    Arrays may have another shape and dtype in every step. They are copied once, and not at all when read.
    """
    nothing = np.empty(0, np.uint8)
    names = dict.fromkeys(name for step in steps for name in step)
    broken: list[Prepared] = [] if error is None else [{}]
    columns = {name: _column([step.get(name, nothing) for step in [*steps, *broken]]) for name in names}
    errors = pa.array([None] * len(steps) + [error] * len(broken), pa.string())
    return pa.table({"error": errors, **columns})


def unpack(table: pa.Table) -> Iterator[Prepared]:
    """The steps of a table that `pack` has made; raises StageError where one went wrong."""
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
