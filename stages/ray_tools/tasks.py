"""Ray tasks that write files by number, such as the shards of a download.

Use `map_on_workers` for everything else. Here a task that fails gets a second attempt, and the caller gets each result
as soon as it is there, in any order, so that an interrupted stage need not do the finished numbers again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from stages.contract import StageError

logger = logging.getLogger(__name__)
_ATTEMPTS = 2  # of a task that raises; Ray itself repeats the tasks of a worker that dies


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
