"""Where the stage paints pictures itself: on the device of its trainings, in their precision, in a Ray task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
import torch

from model.training.precision import HALVES
from stages.config import Config
from stages.ray_tools.cluster import cluster_cores, node_cores
from stages.ray_tools.placement import node_selector

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Device:
    """What a picture is painted on."""

    name: str
    dtype: torch.dtype

    @classmethod
    def of(cls, config: Config) -> Device:
        """That of `customize.trainer`: of `compute`, unless it has its own."""
        trainer = config.customize.trainer
        return cls("cuda" if trainer.use_gpu else "cpu", HALVES.get(trainer.precision, torch.float32))


def results_of(work: Callable[[_Job], Iterator[_Result]], job: _Job, config: Config) -> Iterator[_Result]:
    """What `work` yields in a task on a GPU, or on all cores that the stage may use on one node."""
    gpus = int(config.customize.trainer.use_gpu)
    cpus = 1 if gpus else min(config.run.cpus or cluster_cores(), max(node_cores()))
    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "label_selector": node_selector(gpus)}
    remote: Any = ray.remote(**options, num_returns="streaming")(work)
    for reference in remote.remote(job):
        yield ray.get(reference)
