"""Ray tasks that write files by number, such as the shards of a download.

Use `map_on_workers` for everything else. Here a task that fails gets a second attempt, and the caller gets each result
as soon as it is there, in any order, so that an interrupted stage need not do the finished numbers again.

Ray itself repeats the tasks of a worker or of a machine that is lost; so a task writes its files whole or not at all.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from stages.contract import StageError
from stages.ray_tools.errors import loss, store_errors_as_stage_errors
from stages.ray_tools.placement import node_selector

logger = logging.getLogger(__name__)
_ATTEMPTS = 2  # of a task that raises
_LOST_WORKERS = 5  # in one attempt; Ray's default is 3, and machines that are lent by the hour are lost more often


def run_tasks(
    function: Callable[..., Any],
    arguments: Callable[[int], tuple[Any, ...]],
    numbers: Sequence[int],
    at_once: int,
    finished: Callable[[int, Any], None],
    name: str,
) -> None:
    """Run a function in a Ray task for each number, `at_once` at a time; `finished` is called as each ends.

    Args:
        function: What a task runs.
        arguments: Returns its arguments for a number, when the task is to start.
        numbers: In the order in which they are started; they end in any order.
        at_once: How many run side by side.
        finished: Called with the number and the result.
        name: What a number stands for, such as "shard {} of the list".

    Raises:
        StageError: A task has failed twice.
    """
    options = {"name": function.__name__, "max_retries": _LOST_WORKERS, "label_selector": node_selector()}
    task = ray.remote(_call).options(**options)
    waiting = deque(numbers)
    attempts = dict.fromkeys(numbers, 0)
    running: dict[Any, int] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            number = waiting.popleft()
            attempts[number] += 1
            running[task.remote(function, *arguments(number))] = number
        (reference,), _ = ray.wait(list(running), num_returns=1)
        number = running.pop(reference)
        try:
            result = ray.get(reference)
        except RayError as error:
            logger.warning("%s failed", name.format(number), exc_info=error)
            if attempts[number] >= _ATTEMPTS:
                raise StageError(_sentence(name.format(number), error)) from error
            waiting.append(number)
        else:
            finished(number, result)


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    with store_errors_as_stage_errors(*arguments):
        return function(*arguments)


def _sentence(name: str, error: RayError) -> str:
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, StageError):
        return str(cause)
    if advice := loss(cause):
        return f"{name} could not be done: {advice}."
    text = " ".join(str(cause).split())[:300]
    return f"{name} could not be done ({type(cause).__name__}: {text}); the same command tries it again."
