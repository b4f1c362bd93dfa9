"""Errors of Ray workers as errors of the stage, on a real Ray; those of Ray Data are in `test_mapping.py`."""

from __future__ import annotations

import pytest
import ray

from stages.contract import StageError
from stages.ray_tools.errors import worker_errors_as_stage_errors


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
