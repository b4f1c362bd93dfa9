"""Ray tasks by number, and errors of workers, on a real Ray."""

from __future__ import annotations

import os

import pytest
import ray
import ray.data

from stages.contract import StageError
from stages.ray_tools.tasks import cluster_cores, run_tasks, set_data_context, worker_errors_as_stage_errors


@pytest.mark.slow
def test_every_task_is_done_or_the_failed_one_is_named(ray_cluster: str) -> None:
    @ray.remote
    def square(number: int) -> int:
        if number == 3:
            raise ValueError("not this one")
        return number * number

    assert ray.cluster_resources()["CPU"] > cluster_cores() == os.cpu_count()
    results: dict[int, int] = {}
    run_tasks(square.remote, range(3), 2, results.__setitem__, "number {}")
    assert results == {0: 0, 1: 1, 2: 4}
    with pytest.raises(StageError, match=r"number 3 could not be done \(ValueError: .*the same command tries it again"):
        run_tasks(square.remote, range(5), 2, results.__setitem__, "number {}")


@pytest.mark.slow
def test_an_error_of_a_worker_is_a_stage_error(ray_cluster: str) -> None:
    @ray.remote
    def refuse(number: int) -> int:
        raise ValueError(f"{number} is too large")

    def refuse_row(row: dict[str, int]) -> dict[str, int]:
        raise ValueError(f"{row['item']} is too large")

    set_data_context()
    with pytest.raises(StageError, match=r"^3 is too large$"), worker_errors_as_stage_errors(ValueError):
        ray.get(refuse.remote(3))
    with pytest.raises(StageError, match=r"^4 is too large$"), worker_errors_as_stage_errors(ValueError):
        ray.data.from_items([4]).map(refuse_row).take_all()
    with pytest.raises(StageError, match=r"^5 is too large$"), worker_errors_as_stage_errors(ValueError):
        raise ValueError("5 is too large")
    with pytest.raises(ray.exceptions.RayTaskError), worker_errors_as_stage_errors(PermissionError):
        ray.get(refuse.remote(6))
