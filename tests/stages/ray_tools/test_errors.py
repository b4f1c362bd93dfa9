"""Errors of Ray workers as errors of the stage, on a real Ray; those of Ray Data are in `test_mapping.py`."""

from __future__ import annotations

import pytest
import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, WorkerCrashedError

from stages.contract import StageError
from stages.ray_tools.errors import store_errors_as_stage_errors, worker_errors_as_stage_errors
from stages.storage import store_path, write_whole


def test_an_error_of_this_process_is_a_stage_error() -> None:
    with pytest.raises(StageError, match=r"^5 is too large$"), worker_errors_as_stage_errors(ValueError):
        raise ValueError("5 is too large")


@pytest.mark.slow
def test_an_error_of_a_worker_is_a_stage_error(ray_cluster: str) -> None:
    @ray.remote
    def refuse(number: int) -> int:
        raise ValueError(f"{number} is too large")

    with pytest.raises(StageError, match=r"^3 is too large$"), worker_errors_as_stage_errors(ValueError):
        ray.get(refuse.remote(3))
    with pytest.raises(ray.exceptions.RayTaskError), worker_errors_as_stage_errors(PermissionError):
        ray.get(refuse.remote(6))


def test_a_worker_names_the_store_that_refuses(bucket: str) -> None:
    folder = store_path(f"{bucket}-of-nobody/run")
    with (
        pytest.raises(StageError, match=f"^{folder}: there is no such bucket"),
        store_errors_as_stage_errors(3, folder),
    ):
        write_whole(folder / "shards" / "0.done", b"")
    with pytest.raises(ZeroDivisionError), store_errors_as_stage_errors(3, folder):
        print(1 / 0)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OutOfMemoryError("Task was killed"), "give the machines more memory"),
        (NodeDiedError("its node is dead"), "run the same command again"),
        (WorkerCrashedError(), "see the stage's log"),
    ],
    ids=["memory", "node", "process"],
)
def test_what_ray_could_not_make_good_is_a_sentence(error: RayError, advice: str) -> None:
    with pytest.raises(StageError, match=advice), worker_errors_as_stage_errors(StageError):
        raise error
