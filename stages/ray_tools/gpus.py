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
        limit: The setting to lower when there are fewer GPUs: `compute.workers`, unless the section has its own value.
        count: GPUs without which it cannot begin.
        at_most: GPUs that it can use.
    """

    section: str
    switch: str
    key: str
    limit: str
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
            limit="compute.workers" if trainer.workers == config.compute.workers else f"{section}.workers",
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
        GpuNeed(section=section, switch=_switch(config, section), key=key, limit=key, count=1, at_most=1)
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


def check_gpus_of_machine(config: Config, stages: Sequence[str]) -> None:
    """Check that this machine has the GPUs for these stages, before a Ray is started on it.

    Raises:
        StageError: It has not.
    """
    if needs := gpu_needs(config, stages):
        judge_gpus(needs, "this machine", available=gpus_of_machine(), later=0, may_grow=False)


def gpus_of_cluster() -> tuple[int, int]:
    """The GPUs of the cluster that this process is connected to: now, and those that its autoscaler may start."""
    import ray
    from ray._private.state import state  # Ray has no public way to ask for the autoscaler's limits

    limits = state.get_max_resources_from_cluster_config() or {}
    return int(ray.cluster_resources().get("GPU", 0)), int(limits.get("GPU", 0))


def gpus_of_machine() -> int:
    """The GPUs that a Ray on this machine will have, before there is one."""
    from ray._private.accelerators import get_accelerator_manager_for_resource  # no public way either

    manager = get_accelerator_manager_for_resource("GPU")
    visible = manager.get_current_process_visible_accelerator_ids()  # CUDA_VISIBLE_DEVICES
    there: int = manager.get_current_node_num_accelerators()
    return there if visible is None else min(there, len(visible))


def judge_gpus(needs: Sequence[GpuNeed], cluster: str, *, available: int, later: int, may_grow: bool) -> list[str]:
    """`check_gpus` for a cluster with these numbers of GPUs, now and later.

    Raises:
        StageError: A stage would wait for ever; names all that would.
    """
    if needs and available == later == 0:
        raise StageError(_no_gpu(needs, cluster))
    lacking = [need for need in needs if need.count > max(available, later)]
    if lacking and not may_grow:
        raise StageError(_too_few(lacking, cluster, available))
    return [
        f"{need.key} waits for {need.count} GPUs, of which the cluster has {available}; with compute.min_workers "
        "it goes on with fewer"
        for need in lacking
    ]


def _no_gpu(needs: Sequence[GpuNeed], cluster: str) -> str:
    switches = list(dict.fromkeys(need.switch for need in needs))
    true = f"{switches[0]} is" if len(switches) == 1 else f"{', '.join(switches)} are"
    false = " ".join(f"--set {switch}=false" for switch in switches)
    return f"{true} true and {cluster} has no GPU: compute on CPUs with {false}, or use a cluster with GPUs."


def _too_few(lacking: Sequence[GpuNeed], cluster: str, available: int) -> str:
    asked = ", ".join(f"{need.key}={need.at_most} needs {need.count} GPUs" for need in lacking)
    limits = list(dict.fromkeys(need.limit for need in lacking))
    shared = " (all stages follow it)" if "compute.workers" in limits else ""
    return (
        f"{asked} and {cluster} has {available}: set {' and '.join(limits)} to at most {available}{shared}, or use a "
        "larger cluster."
    )
