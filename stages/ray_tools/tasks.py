"""Ray tasks that write files by number, such as the shards of a download.

Use `map_on_workers` for everything else. Here a task that fails gets a second attempt, and the caller gets each result
as soon as it is there, in any order, so that an interrupted stage need not do the finished numbers again.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

from stages.contract import StageError

logger = logging.getLogger(__name__)
_ATTEMPTS = 2  # of a task that raises; Ray itself repeats the tasks of a worker that dies


def cluster_cores() -> int:
    """Cores of the cluster that this process is connected to.

    Ray is told of more CPUs than this machine has (see `stages.ray_tools.cluster.logical_cpus`): as many tasks that
    keep a core busy would only take each other's turns, and memory for each.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = [(node["NodeID"], int(node["Resources"].get("CPU", 0))) for node in ray.nodes() if node["Alive"]]
    return max(1, sum(min(cpus, os.cpu_count() or 1) if node == here else cpus for node, cpus in nodes))


def set_data_context() -> None:
    """For the Ray Data of a stage: blocks come in order, and errors of a map's function as they were raised."""
    import ray.data  # not needed by all who need the rest

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True


@contextmanager
def worker_errors_as_stage_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of these kinds, which say what is wrong in one sentence, into StageErrors.

    Also those that a Ray worker has raised, below what Ray has wrapped around them; other errors pass. Ray Data keeps
    no more than the text of what a function has raised, unless it is a generator or `set_data_context` was called.
    """
    try:
        yield
    except (RayError, *kinds) as error:
        told: BaseException | None = error
        while told is not None and (isinstance(told, RayError) or not isinstance(told, kinds)):
            told = getattr(told, "cause", None) or told.__cause__
        if told is None:
            raise
        raise StageError(str(told).partition("\n")[0]) from error  # Ray Data appends lines of its own


def run_tasks(
    start: Callable[[int], Any],
    numbers: Sequence[int],
    at_once: int,
    finished: Callable[[int, Any], None],
    name: str,
) -> None:
    """Run a Ray task for each number, `at_once` at a time; `finished` is called as each ends, in any order.

    Args:
        start: Submits the task with this number; returns its reference.
        at_once: How many run side by side.
        finished: Called with the number and the result.
        name: What a number stands for, such as "shard {} of the list".

    Raises:
        StageError: A task has failed twice.
    """
    waiting = deque(numbers)
    attempts = dict.fromkeys(numbers, 0)
    running: dict[Any, int] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            number = waiting.popleft()
            attempts[number] += 1
            running[start(number)] = number
        (reference,), _ = ray.wait(list(running), num_returns=1)
        number = running.pop(reference)
        try:
            result = ray.get(reference)
        except RayError as error:
            cause = getattr(error, "cause", None) or error
            logger.warning("%s failed", name.format(number), exc_info=error)
            if attempts[number] >= _ATTEMPTS:
                raise StageError(
                    f"{name.format(number)} could not be done ({type(cause).__name__}: "
                    f"{' '.join(str(cause).split())[:300]}); the same command tries it again."
                ) from error
            waiting.append(number)
        else:
            finished(number, result)
