"""A function over many items on Ray workers: in order, with progress, and with a worker's error as the stage's."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from stages.contract import Reporter, StageError
from stages.ray_tools.errors import store_errors_as_stage_errors, worker_errors_as_stage_errors
from stages.ray_tools.placement import node_selector


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The processes that do the work.

    Attributes:
        count: How many at most work at the same time; None: as many as Ray has CPUs for.
        cpus: CPUs that each asks Ray for.
        gpus: GPUs that each asks Ray for; a share of one is allowed.
    """

    count: int | None = None
    cpus: float = 1
    gpus: float = 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How a result adds to the stage's progress.

    Attributes:
        total: What all results amount to.
        note: What the stage is doing.
        amount: What a result amounts to; by default each counts 1.
    """

    report: Reporter
    total: int
    note: str
    amount: Callable[[pa.Table], int] = lambda result: 1

    def follow(self, results: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Pass the results on and report each."""
        done = 0
        for result in results:
            done += self.amount(result)
            self.report.progress(done, self.total, self.note)
            yield result
        if done < self.total:  # Ray Data omits results without rows
            self.report.progress(self.total, self.total, self.note)


def map_on_workers(
    function: Callable[..., Any],
    batches: Iterable[pa.Table],
    *,
    arguments: Mapping[str, Any],
    workers: Workers,
    progress: Progress | None = None,
    errors: tuple[type[Exception], ...] = (),
) -> Iterator[pa.Table]:
    """What `function` returns for each batch, in the order of the batches; without results that have no rows.

    A worker that dies, or whose machine does, is replaced, and its batches are done again.

    Args:
        function: Called with a batch, and returns or yields tables. A class is instantiated once for each worker, which
            keeps what it has loaded from batch to batch.
        batches: Each is the work of one call.
        arguments: Keyword arguments of the function, or of the class's constructor.
        workers: Where it runs.
        progress: Reported after each batch.
        errors: Errors of the function, besides StageError, whose message is a sentence for the user.

    Raises:
        StageError: The function has raised one of `errors` or a StageError.
    """
    import ray.data  # takes a second

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    tables = list(batches)
    if not tables:
        return
    mapped = ray.data.from_arrow(tables).map_batches(
        _guarded(function, arguments),
        batch_format="pyarrow",
        batch_size=None,  # a block is a batch
        compute=_compute(function, workers.count, len(tables)),
        num_cpus=workers.cpus,
        num_gpus=workers.gpus or None,
        **{"fn_constructor_kwargs" if isinstance(function, type) else "fn_kwargs": dict(arguments)},
    )
    mapped.context.execution_options.preserve_order = True
    mapped.context.execution_options.label_selector = node_selector(workers.gpus)
    mapped.context.raise_original_map_exception = True
    results = mapped.iter_batches(batch_size=None, batch_format="pyarrow")
    with worker_errors_as_stage_errors(StageError, *errors):
        yield from progress.follow(results) if progress else results


def _guarded(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Callable[..., Any]:
    """The function or class, whose calls name an object store that refuses a request."""
    call = function.__call__ if isinstance(function, type) else function

    @functools.wraps(call)
    def guarded(*given: Any, **named: Any) -> Iterator[Any]:
        with store_errors_as_stage_errors(*arguments.values()):
            result = call(*given, **named)
            yield from result if isinstance(result, Iterator) else [result]

    return type(function.__name__, (function,), {"__call__": guarded}) if isinstance(function, type) else guarded


def rows_of(result: pa.Table) -> int:
    """The sum of a result's column `rows`, as the amount of `Progress`."""
    return sum(result["rows"].to_pylist())


def one_row_batches(rows: Iterable[Mapping[str, Any]]) -> list[pa.Table]:
    """A batch for each row."""
    return [pa.Table.from_pylist([dict(row)]) for row in rows]


def _compute(function: Callable[..., Any], count: int | None, batches: int) -> Any:
    import ray.data

    size = None if count is None else min(count, batches)
    if isinstance(function, type):
        return ray.data.ActorPoolStrategy(size=size or batches)
    return ray.data.TaskPoolStrategy(size=size)
