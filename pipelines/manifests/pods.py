"""The pods of a Ray cluster on Kubernetes: what they may do, what they take, where their secrets come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

Manifest: TypeAlias = dict[str, Any]

#: All pods carry it; the network policy is about them.
LABELS = {"app.kubernetes.io/part-of": "realword"}
#: The user's Secret with credentials of the object store, of MLflow and of the Hugging Face hub, as environment
#: variables. Where the cloud gives pods a role, there need be none.
SECRET = "realword"
#: The user's Secret with REALWORD_API_KEYS; pods of the endpoint alone get it.
API_KEYS_SECRET = "realword-api-keys"
#: Pods run as this account: clouds bind their roles to it.
SERVICE_ACCOUNT = "realword"
#: Of the image's user (infra/Dockerfile).
USER = 1000

#: Ports of a Ray node, by the names that KubeRay reads.
DASHBOARD, METRICS, SERVE = 8265, 8080, 8000
_HEAD_PORTS = {"gcs-server": 6379, "dashboard": DASHBOARD, "client": 10001, "metrics": METRICS, "serve": SERVE}
_WORKER_PORTS = {"metrics": METRICS, "serve": SERVE}

#: A node that must go gets 30 seconds from Ray to end its work.
_GRACE_SECONDS = 60

CONTAINER_SECURITY: Manifest = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_POD_SECURITY: Manifest = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def resources(cpus: int, memory_gib: int, gpus: int = 0) -> Manifest:
    """Requests that are also the limits: Ray hands out the limits, and a pod must have what Ray hands out."""
    amounts = {"cpu": str(cpus), "memory": f"{memory_gib}Gi"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    return {"requests": amounts, "limits": dict(amounts)}


def head_pod(image: str, size: Manifest, *, api_keys: bool = False) -> Manifest:
    """The template of the head's pod."""
    return _pod(image, "ray-head", size, _HEAD_PORTS, api_keys=api_keys)


def worker_pod(image: str, size: Manifest, *, api_keys: bool = False) -> Manifest:
    """The template of a worker's pod; one with GPUs may go to nodes that are kept for those."""
    template = _pod(image, "ray-worker", size, _WORKER_PORTS, api_keys=api_keys)
    if "nvidia.com/gpu" in size["limits"]:
        gpu_nodes = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        template["spec"]["tolerations"] = [gpu_nodes]
    return template


def submitter_pod(image: str) -> Manifest:
    """The template of the pod that submits the job and follows its log."""
    small: Manifest = {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}
    container = {"name": "ray-job-submitter", "image": image, "resources": small, "securityContext": CONTAINER_SECURITY}
    spec = {"restartPolicy": "Never", "securityContext": _POD_SECURITY, "containers": [container]}
    return {"metadata": {"labels": LABELS}, "spec": spec}


def _pod(image: str, name: str, size: Manifest, ports: Mapping[str, int], *, api_keys: bool) -> Manifest:
    secrets = [{"secretRef": {"name": SECRET, "optional": True}}]
    if api_keys:
        secrets.append({"secretRef": {"name": API_KEYS_SECRET, "optional": True}})
    container = {
        "name": name,
        "image": image,
        "ports": [{"name": port, "containerPort": number} for port, number in ports.items()],
        "envFrom": secrets,
        "resources": size,
        "securityContext": CONTAINER_SECURITY,
    }
    spec = {
        "serviceAccountName": SERVICE_ACCOUNT,
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "securityContext": _POD_SECURITY,
        "containers": [container],
    }
    return {"metadata": {"labels": LABELS}, "spec": spec}
