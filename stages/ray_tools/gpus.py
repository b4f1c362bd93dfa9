"""The GPUs that a run asks for, and whether a cluster has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from stages.config import Config
from stages.contract import StageError


@dataclass(frozen=True, kw_only=True)
class GpuNeed:
    """What a stage asks for.

    Attributes:
        section: Of the configuration.
        switch: The setting that lets it use GPUs.
        key: The setting that says how many processes it has.
        count: GPUs without which it cannot begin.
        at_most: GPUs that it can use.
    """

    section: str
    switch: str
    key: str
    count: int
    at_most: int


class _Trainer(Protocol):
    """The settings of what is trained."""

    @property
    def use_gpu(self) -> bool: ...
    @property
    def workers(self) -> int: ...
    @property
    def min_workers(self) -> int | None: ...


def gpu_needs(config: Config, stages: Sequence[str]) -> list[GpuNeed]:
    """What these stages ask for; those that work on the CPU are left out."""
    trainers: dict[str, tuple[str, _Trainer]] = {
        "base": ("base", config.base),
        "train_adapter": ("train_adapter.trainer", config.train_adapter.trainer),
        "contextualizer": ("contextualizer.trainer", config.contextualizer.trainer),
        "customize": ("customize.trainer", config.customize.trainer),
    }
    needs = [
        GpuNeed(
            section=section,
            switch=_switch(config, section),
            key=f"{section}.workers",
            count=min(trainer.min_workers or trainer.workers, trainer.workers),
            at_most=trainer.workers,
        )
        for stage, (section, trainer) in trainers.items()
        if stage in stages and trainer.use_gpu
    ]
    painters = {
        "filter": ("filter.scoring", "filter.scoring.actors", config.filter.scoring.use_gpu),
        "cache_latents": ("cache_latents", "cache_latents.actors", config.cache_latents.use_gpu),
        "evaluate": ("evaluate", "evaluate.workers", config.evaluate.use_gpu),
    }
    return needs + [
        GpuNeed(section=section, switch=_switch(config, section), key=key, count=1, at_most=1)
        for stage, (section, key, use_gpu) in painters.items()
        if stage in stages and use_gpu
    ]


def _switch(config: Config, section: str) -> str:
    return "compute.use_gpu" if config.compute.use_gpu else f"{section}.use_gpu"


def check_gpus(needs: Sequence[GpuNeed], cluster: str, *, may_grow: bool) -> list[str]:
    """Check that the cluster that this process is connected to has the GPUs; returns warnings.

    Args:
        needs: Of the stages to run.
        cluster: Its name in messages.
        may_grow: Nodes may join it: it is enough that it has some, or that its autoscaler may start some.

    Raises:
        StageError: It has not.
    """
    available, later = gpus_of_cluster()
    return judge_gpus(needs, cluster, available=available, later=later, may_grow=may_grow)


def gpus_of_cluster() -> tuple[int, int]:
    """The GPUs of the cluster that this process is connected to: now, and those that its autoscaler may start."""
    import ray
    from ray._private.state import state  # Ray has no public way to ask for the autoscaler's limits

    limits = state.get_max_resources_from_cluster_config() or {}
    return int(ray.cluster_resources().get("GPU", 0)), int(limits.get("GPU", 0))


def judge_gpus(needs: Sequence[GpuNeed], cluster: str, *, available: int, later: int, may_grow: bool) -> list[str]:
    """`check_gpus` for a cluster with these numbers of GPUs, now and later.

    Raises:
        StageError: A stage would wait for ever.
    """
    warnings = []
    for need in needs:
        if available == later == 0:
            raise StageError(
                f"{need.switch} is true and {cluster} has no GPU: set compute.use_gpu=false to compute on "
                "CPUs, or use a cluster with GPUs."
            )
        if need.count <= max(available, later):
            continue
        if not may_grow:
            raise StageError(
                f"{need.key}={need.at_most} needs {need.count} GPUs and {cluster} has {available}: set compute.workers "
                f"to at most {available}, which sets it for all stages, or use a larger cluster."
            )
        warnings.append(
            f"{need.key} waits for {need.count} GPUs, of which the cluster has {available}; with compute.min_workers "
            "it goes on with fewer"
        )
    return warnings
