"""KubeRay's resources (v1.7) for a configuration, and what Kubernetes needs beside them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

import yaml

from pipelines.manifests.cluster import Machines, ray_cluster
from pipelines.manifests.demand import Demand, endpoint_demand, ingest_demand, pipeline_demand
from pipelines.manifests.endpoint import serve_config
from pipelines.manifests.pods import DASHBOARD, LABELS, METRICS, SERVE, SERVICE_ACCOUNT, Manifest, submitter_pod
from stages.config import Config

_API = "ray.io/v1"
#: A retry gets a new cluster, which starts after the last one is gone. The run's lock is free a minute after the last
#: sign of life of its holder, and a second submitter that finds it held ends: no retry works beside a living run.
_RETRIES = 3
#: A cluster without its nodes after this time has failed: the user's quota or the cloud's machines are used up.
_PRE_RUNNING_SECONDS = 3600
#: How long logs can be read after the end.
_KEEP_SECONDS = 3600
_NIGHTLY = {"schedule": "0 3 * * *", "timeZone": "Etc/UTC"}
#: Of an incremental upgrade: so much of the traffic moves to the new cluster at once.
_STEP_PERCENT, _STEP_SECONDS, _SURGE_PERCENT = 10, 30, 100


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What the manifests are made of.

    Attributes:
        config: What `settings` make of their profile.
        settings: "key=value", as after --set.
        image: The image of all pods.
        machines: What the nodes of the Kubernetes cluster have.
        gateway: The GatewayClass through which an upgrade moves the traffic step by step; None: at once.
    """

    config: Config
    settings: Sequence[str] = ()
    image: str
    machines: Machines = field(default_factory=Machines)
    gateway: str | None = None

    @property
    def name(self) -> str:
        """Of the resources."""
        return f"realword-{self.config.profile}"


def manifests(deployment: Deployment) -> dict[str, Manifest]:
    """All resources, by the names of their files without .yaml."""
    return {
        "serviceaccount": service_account(),
        "networkpolicy": network_policy(),
        "rayjob": ray_job(deployment),
        "raycluster": ray_cluster_resource(deployment),
        "rayservice": ray_service(deployment),
        "raycronjob": ray_cron_job(deployment),
    }


def ray_job(deployment: Deployment) -> Manifest:
    """The pipeline, on a cluster of its own that ends with it."""
    spec = _job_spec(deployment, "all", pipeline_demand(deployment.config), _RETRIES)
    return _resource("RayJob", deployment.name, spec)


def ray_cron_job(deployment: Deployment) -> Manifest:
    """The nightly ingest. One that finds a run at work in the folder ends; the next night is its retry."""
    spec = _NIGHTLY | {"jobTemplate": _job_spec(deployment, "ingest", ingest_demand(deployment.config), 0)}
    return _resource("RayCronJob", f"{deployment.name}-nightly", spec)


def ray_cluster_resource(deployment: Deployment) -> Manifest:
    """A cluster that stays, for `ray job submit`."""
    demand = pipeline_demand(deployment.config)
    # A RayService of the same name would make services of the same names.
    name = f"{deployment.name}-cluster"
    return _resource("RayCluster", name, ray_cluster(deployment.image, demand, deployment.machines))


def ray_service(deployment: Deployment) -> Manifest:
    """The endpoint."""
    demand, service = endpoint_demand(deployment.config), f"{deployment.name}-serve-svc"
    application = serve_config(deployment.config, deployment.settings, service)
    spec = {
        "upgradeStrategy": _upgrade(deployment.gateway),
        "serveConfigV2": yaml.safe_dump(application, sort_keys=False, width=120),
        "rayClusterConfig": ray_cluster(deployment.image, demand, deployment.machines, api_keys=True),
    }
    return _resource("RayService", deployment.name, spec)


def service_account() -> Manifest:
    """The account of all pods, to which a cloud binds a role that may use the object store."""
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": SERVICE_ACCOUNT, "labels": LABELS}}


def network_policy() -> Manifest:
    """Who may reach the pods: one another, KubeRay's operator, Prometheus, and everyone the endpoint.

    A plain policy: KubeRay's own field `networkPolicy` is ignored unless the operator has its alpha feature switched
    on. What the pods may reach is left open, for the pictures of `ingest` lie anywhere on the web.
    """
    operator = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}, "namespaceSelector": {}}
    prometheus = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}, "namespaceSelector": {}}
    rules: list[Manifest] = [
        {"from": [{"podSelector": {"matchLabels": LABELS}}]},
        {"from": [operator], "ports": [_tcp(DASHBOARD)]},
        {"from": [prometheus], "ports": [_tcp(METRICS)]},
        {"ports": [_tcp(SERVE)]},
    ]
    spec = {"podSelector": {"matchLabels": LABELS}, "policyTypes": ["Ingress"], "ingress": rules}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "realword", "labels": LABELS},
        "spec": spec,
    }


def _job_spec(deployment: Deployment, stage: str, demand: Demand, retries: int) -> Manifest:
    words = ["python", "pipeline.py", "run", "--stage", stage, "--profile", deployment.config.profile]
    for setting in deployment.settings:
        words += ["--set", setting]
    return {
        "entrypoint": shlex.join(words),
        "backoffLimit": retries,
        "preRunningDeadlineSeconds": _PRE_RUNNING_SECONDS,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": _KEEP_SECONDS,
        "submitterPodTemplate": submitter_pod(deployment.image),
        "rayClusterSpec": ray_cluster(deployment.image, demand, deployment.machines),
    }


def _upgrade(gateway: str | None) -> Manifest:
    if gateway is None:
        return {"type": "NewCluster"}
    options = {
        "gatewayClassName": gateway,
        "stepSizePercent": _STEP_PERCENT,
        "intervalSeconds": _STEP_SECONDS,
        "maxSurgePercent": _SURGE_PERCENT,
    }
    return {"type": "NewClusterWithIncrementalUpgrade", "clusterUpgradeOptions": options}


def _tcp(port: int) -> Manifest:
    return {"protocol": "TCP", "port": port}


def _resource(kind: str, name: str, spec: Manifest) -> Manifest:
    return {"apiVersion": _API, "kind": kind, "metadata": {"name": name, "labels": LABELS}, "spec": spec}
