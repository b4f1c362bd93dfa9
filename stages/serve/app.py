"""The applications on Ray Serve: a front that only waits, and the painters behind it.

They are two, so that a new version of the model replaces the painters only: the front keeps its connections.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from stages.serve.api_keys import ApiKeys
from stages.serve.config import ServeConfig
from stages.serve.painter import Painter
from stages.serve.painting import PainterLimits, Served
from stages.serve.ray_painters import RayPainters
from stages.serve.served_model import ServedModel
from stages.serve.web.application import make_application
from stages.serve.web.draining import Draining

#: Of the application with the front, unless a file for `serve deploy` names it otherwise.
APP = "realword"
_PAINTER = "Painter"
_MAX_CONNECTIONS = 1000  # of the front, which only waits
_LOAD_ATTEMPTS = 2
#: Variables of this process that the painters need also on a cluster that was started without them: no telemetry, no
#: request to the hub, threads that sleep while they wait, and where the registry's files are. Users, passwords and keys
#: are of each machine's own environment.
_ENVIRONMENT = (
    "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "DO_NOT_TRACK", "GOMP_SPINCOUNT",
    "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE", "MLFLOW_DISABLE_TELEMETRY", "MLFLOW_S3_ENDPOINT_URL",
    "MLFLOW_S3_IGNORE_TLS", "MLFLOW_TRACKING_INSECURE_TLS", "OMP_WAIT_POLICY",
)  # fmt: skip


def painters_name(app: str) -> str:
    """The name of the application with the painters of an application."""
    return f"{app}-painters"


@serve.deployment
@serve.ingress()
class Front:
    """Validates the form of requests, and passes them to the painters. Serve adds `x-request-id` to all answers.

    Args:
        name: The model's, in OpenAI's routes.
        settings: Of the endpoint.
        keys: That requests may have.
        uploads: The folder of uploaded concepts; None: clients cannot upload any.
        others: Other deployments of this application, which the front does not use.
    """

    def __init__(
        self, name: str, settings: ServeConfig, keys: ApiKeys, uploads: Path | None, *others: DeploymentHandle
    ) -> None:
        painters = DeploymentHandle(_PAINTER, painters_name(serve.get_replica_context().app_name))
        self._draining = Draining()
        served = RayPainters(painters, Served(title=name))
        self._application = make_application(served, name, settings, keys, self._draining, uploads)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor."""
        return self._application

    async def drain(self) -> None:
        """Refuse new requests; return when the others are answered."""
        await self._draining.drain()


def front_application(
    name: str, settings: ServeConfig, keys: ApiKeys, uploads: Path | None, *others: serve.Application
) -> serve.Application:
    """The front, which finds its painters by the name of its application.

    Args:
        name: The model's.
        settings: Of the endpoint.
        keys: That requests may have. Ray's processes get their hashes, not the keys.
        uploads: As of `Front`.
        others: What else belongs to the application.
    """
    # Type checkers see the classes, not what @serve.deployment makes of them.
    front = Front.options(  # type: ignore[attr-defined]
        max_ongoing_requests=_MAX_CONNECTIONS,
        max_surge_percent=100,
        graceful_shutdown_timeout_s=settings.timeout_seconds,
        ray_actor_options={"num_cpus": 0},
    )
    return front.bind(name, settings, keys, uploads, *others)


def painters_application(
    model: ServedModel, settings: ServeConfig, gpus: float, uploads: Path | None = None
) -> serve.Application:
    """The painters. Deployed again with another model, they go on until those with that model are ready.

    Args:
        model: The model to serve.
        settings: Of the endpoint.
        gpus: Of the cluster.
        uploads: As of `Front`.
    """
    share, surge = _gpu_share(settings, gpus)
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    painters = Painter.options(  # type: ignore[attr-defined]
        name=_PAINTER,
        max_ongoing_requests=_MAX_CONNECTIONS,  # painters queue requests themselves, and refuse those that are too many
        max_surge_percent=surge,
        max_constructor_retry_count=_LOAD_ATTEMPTS,
        graceful_shutdown_timeout_s=settings.timeout_seconds,
        ray_actor_options={"num_cpus": 1, "num_gpus": share, "runtime_env": {"env_vars": environment}},
        **_replicas(settings),
    )
    return painters.bind(model, settings.max_replicas or settings.replicas, painter_limits(settings), uploads)


def painter_limits(settings: ServeConfig) -> PainterLimits:
    """Those of each painter."""
    return PainterLimits(
        batch=settings.max_batch_size,
        waiting=settings.max_queued_requests,
        cached_bytes=settings.max_cached_bytes,
        safety_checker=settings.safety_checker,
    )


def _gpu_share(settings: ServeConfig, gpus: float) -> tuple[float, int]:
    """The GPUs of a painter, and how many painters more there may be while a new version replaces them, in percent.

    By default, Serve stops an old replica before it starts a new one. With more than one, the others go on meanwhile,
    but a single painter must leave room for the next one.
    """
    if not settings.use_gpu:
        return 0, 100
    if gpus > (settings.max_replicas or settings.replicas):
        return 1, 100
    return (1, 0) if settings.replicas > 1 else (0.5, 100)


def _replicas(settings: ServeConfig) -> dict[str, Any]:
    """How many painters there are; with a maximum, Serve starts more when each has more than one batch to paint."""
    if settings.max_replicas is None:
        return {"num_replicas": settings.replicas}
    scaling = {
        "min_replicas": settings.replicas,
        "max_replicas": settings.max_replicas,
        "target_ongoing_requests": settings.max_batch_size,
    }
    return {"autoscaling_config": scaling}
