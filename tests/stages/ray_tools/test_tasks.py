"""Ray tasks by number, on a real Ray."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import ray

from stages.contract import StageError
from stages.ray_tools.cluster import cluster_cores
from stages.ray_tools.tasks import run_tasks


def die_once(folder: Path) -> str:
    mark = folder / "died"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


@pytest.mark.slow
def test_the_task_of_a_worker_that_dies_is_repeated(ray_cluster: str, tmp_path: Path) -> None:
    results: dict[int, str] = {}
    run_tasks(die_once, lambda number: (tmp_path,), range(1), 1, results.__setitem__, "number {}")
    assert results == {0: "done"}


@pytest.mark.slow
def test_every_task_is_done_or_the_failed_one_is_named(ray_cluster: str) -> None:
    def square(number: int) -> int:
        if number == 3:
            raise ValueError("not this one")
        return number * number

    def one(number: int) -> tuple[int]:
        return (number,)

    assert ray.cluster_resources()["CPU"] > cluster_cores() == os.cpu_count()
    results: dict[int, int] = {}
    run_tasks(square, one, range(3), 2, results.__setitem__, "number {}")
    assert results == {0: 0, 1: 1, 2: 4}
    with pytest.raises(StageError, match=r"number 3 could not be done \(ValueError: .*the same command tries it again"):
        run_tasks(square, one, range(5), 2, results.__setitem__, "number {}")
