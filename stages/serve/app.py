"""The application on Ray Serve: a front that only waits, and the painters behind it."""

from __future__ import annotations

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from stages.serve.api_keys import ApiKeys
from stages.serve.config import ServeConfig
from stages.serve.painter import Painter
from stages.serve.ray_painters import RayPainters
from stages.serve.served_model import ServedModel
from stages.serve.web.application import make_application

_GRACE_SECONDS = 5  # for pictures that are being painted when the server is stopped
_MAX_CONNECTIONS = 1000  # of the front, which only waits


@serve.deployment
@serve.ingress()
class Front:
    """Validates the form of requests, and passes them to the painters. Serve adds `x-request-id` to all answers."""

    def __init__(self, painters: DeploymentHandle, name: str, title: str, settings: ServeConfig, keys: ApiKeys) -> None:
        self._application = make_application(RayPainters(painters), name, title, settings, keys)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor."""
        return self._application


def build_app(model: ServedModel, settings: ServeConfig, keys: ApiKeys) -> serve.Application:
    """The front with its painters.

    Args:
        model: The model to serve.
        settings: Of the endpoint.
        keys: That requests may have. Ray's processes get their hashes, not the keys.
    """
    # Type checkers see the classes, not what @serve.deployment makes of them.
    painters = Painter.options(  # type: ignore[attr-defined]
        num_replicas=settings.replicas,
        max_ongoing_requests=_MAX_CONNECTIONS,  # painters queue requests themselves, and refuse those that are too many
        graceful_shutdown_timeout_s=_GRACE_SECONDS,
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if settings.use_gpu else 0},
    ).bind(model.load, settings.replicas, settings.painter_limits)
    front = Front.options(max_ongoing_requests=_MAX_CONNECTIONS)  # type: ignore[attr-defined]
    return front.bind(painters, model.name, model.title, settings, keys)
