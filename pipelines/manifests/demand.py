"""How many CPUs and GPUs a configuration asks a cluster for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipelines.graph import pipeline_graph
from stages.config import Config
from stages.ray_tools.gpus import gpu_needs


@dataclass(frozen=True)
class Demand:
    """What a cluster's workers have together: at least, all the time; at most, while there is work for them."""

    min_cpus: int
    max_cpus: int
    min_gpus: int
    max_gpus: int


def pipeline_demand(config: Config) -> Demand:
    """Of `run --stage all`: the largest stage's. Stages that run side by side wait for one another."""
    order = pipeline_graph(config).order
    cpus, gpus = max(_cpus(config, name) for name in order), max(_gpus(config, name) for name in order)
    return Demand(min_cpus=1, max_cpus=cpus, min_gpus=0, max_gpus=gpus)


def ingest_demand(config: Config) -> Demand:
    """Of `run --stage ingest`."""
    return Demand(min_cpus=1, max_cpus=_cpus(config, "ingest"), min_gpus=0, max_gpus=0)


def endpoint_demand(config: Config) -> Demand:
    """Of the endpoint's painters; the front takes no CPU that Ray counts."""
    least, most = config.serve.replicas, config.serve.max_replicas or config.serve.replicas
    if config.serve.use_gpu:
        return Demand(min_cpus=0, max_cpus=0, min_gpus=least, max_gpus=most)
    # A new version of the model is loaded beside the one that paints.
    return Demand(min_cpus=least, max_cpus=2 * most, min_gpus=0, max_gpus=0)


def _cpus(config: Config, stage: str) -> int:
    if _gpus(config, stage):
        return 1
    return config.ingest.processes if stage == "ingest" else pipeline_graph(config).stages[stage].cpus(config)


def _gpus(config: Config, stage: str) -> int:
    """GPUs that a stage's workers take together."""
    needs = gpu_needs(config, [stage])
    if not needs:
        return 0
    match stage:
        case "filter":
            return math.ceil(config.filter.scoring.actors * config.filter.scoring.gpus_per_actor)
        case "cache_latents":
            return math.ceil(config.cache_latents.actors * config.cache_latents.gpus_per_actor)
        case "evaluate":
            return config.evaluate.workers
        case "customize":
            return needs[0].at_most * config.customize.concepts
    return needs[0].at_most
