"""The Ray cluster: a head without work, a group of CPU workers and a group of GPU workers, as large as asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.metadata import version

from pipelines.manifests.demand import Demand
from pipelines.manifests.pods import CONTAINER_SECURITY, Manifest, head_pod, resources, worker_pod

#: The driver and the stages' own processes run on the head, outside Ray's accounting.
_HEAD_CPUS, _HEAD_MEMORY_GIB = 4, 32
_MEMORY_GIB_PER_CPU = 4
_CPUS_PER_GPU, _MEMORY_GIB_PER_GPU = 6, 48
#: How long a worker without work is kept.
_IDLE_SECONDS = 300
#: The label by which stages keep CPU work off GPU nodes.
POOL = "realword/pool"


@dataclass(frozen=True)
class Machines:
    """What the user's Kubernetes nodes have: a worker's pod takes at most one node."""

    cpus: int = 8
    gpus: int = 8


def ray_cluster(image: str, demand: Demand, machines: Machines, *, api_keys: bool = False) -> Manifest:
    """The spec of a RayCluster.

    Args:
        image: Of all pods.
        demand: What its workers must have together.
        machines: What one of them may have.
        api_keys: Whether the pods get the endpoint's API keys.
    """
    head = head_pod(image, resources(_HEAD_CPUS, _HEAD_MEMORY_GIB), api_keys=api_keys)
    groups = []
    if demand.max_cpus:
        groups.append(_cpu_group(image, demand, machines, api_keys))
    if demand.max_gpus:
        groups.append(_gpu_group(image, demand, machines, api_keys))
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},  # the operator makes the Secret with the token
        # GPU nodes come when a training asks for them, and go when it has ended.
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": _IDLE_SECONDS,
            "securityContext": CONTAINER_SECURITY,
        },
        "headGroupSpec": {
            "resources": {"CPU": "0"},
            "rayStartParams": {"dashboard-host": "0.0.0.0"},
            "template": head,
        },
        "workerGroupSpecs": groups,
    }


def _cpu_group(image: str, demand: Demand, machines: Machines, api_keys: bool) -> Manifest:
    cpus = min(machines.cpus, demand.max_cpus)
    size = resources(cpus, cpus * _MEMORY_GIB_PER_CPU)
    least, most = math.ceil(demand.min_cpus / cpus), math.ceil(demand.max_cpus / cpus)
    return _group("cpu", least, most, worker_pod(image, size, api_keys=api_keys))


def _gpu_group(image: str, demand: Demand, machines: Machines, api_keys: bool) -> Manifest:
    gpus = min(machines.gpus, demand.max_gpus)
    size = resources(gpus * _CPUS_PER_GPU, gpus * _MEMORY_GIB_PER_GPU, gpus)
    least, most = math.ceil(demand.min_gpus / gpus), math.ceil(demand.max_gpus / gpus)
    return _group("gpu", least, most, worker_pod(image, size, api_keys=api_keys))


def _group(pool: str, least: int, most: int, template: Manifest) -> Manifest:
    # KubeRay refuses labels in rayStartParams; this field is their place.
    return {
        "groupName": pool,
        "labels": {POOL: pool},
        "replicas": least,
        "minReplicas": least,
        "maxReplicas": most,
        "rayStartParams": {},
        "template": template,
    }
