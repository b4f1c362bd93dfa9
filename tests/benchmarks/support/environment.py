"""The environment of a benchmark, and a report without a receiver."""

from __future__ import annotations

import os

from pipelines.execution.environment import set_environment
from stages.contract import Reporter


def set_benchmark_environment(profile: str) -> None:
    """Set a run's environment, except that Ray's workers have normal priority, like the code they are compared with."""
    set_environment(profile)
    os.environ.update(RAY_worker_niceness="0")


def silent_reporter() -> Reporter:
    """A reporter that drops all events."""
    return Reporter(emit=lambda event: None)
