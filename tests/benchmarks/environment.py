"""The environment of a measurement that sets Ray beside something else."""

from __future__ import annotations

import os

from pipelines.execution.environment import set_environment


def set_benchmark_environment(profile: str) -> None:
    """As a run's, but that Ray's workers do not yield to everybody else: the other side's do not either."""
    set_environment(profile)
    os.environ.update(RAY_worker_niceness="0")
