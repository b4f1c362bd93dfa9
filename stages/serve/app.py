"""The deployments: a front that speaks HTTP, and painters that hold the model and paint in batches.

Annotations are evaluated at once here (no `from __future__ import annotations`): Serve pickles the routes, and FastAPI
could not resolve the names of their types afterwards.
"""

import asyncio
import base64
import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from stages.serve.config import ServeConfig
from stages.serve.form import BadRequestError, read_form

_BATCH_WAIT_SECONDS = 0.02
_RETRY_AFTER_SECONDS = 2
_HEALTH_SECONDS = 5
_GRACE_SECONDS = 5  # for pictures that are being painted when the server is stopped
_MAX_CONNECTIONS = 1000  # of the front, which only waits

web = FastAPI(title="Realword", docs_url=None, redoc_url=None, openapi_url=None)


@web.exception_handler(BadRequestError)
async def _refuse(_: Request, error: BadRequestError) -> JSONResponse:
    headers = {"Retry-After": str(_RETRY_AFTER_SECONDS)} if error.status == 503 else None
    return JSONResponse({"error": error.sentence}, error.status, headers)


@serve.deployment
class Painter:
    """Holds one copy of the registered model. Requests that wait together are painted together."""

    def __init__(self, uri: str, tracking_uri: str, settings: ServeConfig) -> None:
        import mlflow
        import torch

        torch.set_num_threads(max(1, (os.cpu_count() or 1) // settings.replicas))
        mlflow.set_tracking_uri(tracking_uri)
        mlflow.set_registry_uri(tracking_uri)
        self.model = mlflow.pyfunc.load_model(uri)
        self.paint_batch.set_max_batch_size(settings.max_batch_size)

    async def paint(self, fields: dict[str, Any]) -> tuple[str, dict[str, str]]:
        """What is wrong with a request, or "" and its picture and mask. A wrong one never enters a batch."""
        try:
            self.model.unwrap_python_model().check(fields)
        except ValueError as error:
            return str(error), {}
        return "", await self.paint_batch(fields)

    @serve.batch(batch_wait_timeout_s=_BATCH_WAIT_SECONDS)
    async def paint_batch(self, requests: list[dict[str, Any]]) -> list[dict[str, str]]:
        """Paint beside the event loop, which goes on answering."""
        paintings = await asyncio.to_thread(self.model.predict, requests)
        return [painting.model_dump() for painting in paintings]

    async def ready(self) -> bool:
        """Answers as soon as the model is loaded."""
        return True


@serve.deployment
@serve.ingress(web)
class Front:
    """Checks requests, hands them to the painters, and says in one sentence why it cannot."""

    def __init__(self, painters: DeploymentHandle, model: str, settings: ServeConfig) -> None:
        self.painters = painters
        self.model = model
        self.settings = settings
        self.page = (Path(__file__).parent / "page.html").read_text().replace("{{ model }}", model)

    @web.get("/")
    async def index(self) -> HTMLResponse:
        """A page to try it on."""
        return HTMLResponse(self.page)

    @web.get("/health")
    async def health(self) -> JSONResponse:
        """200 while a painter answers, or is busy painting."""
        try:
            await asyncio.wait_for(self._ask("ready"), _HEALTH_SECONDS)
        except BackPressureError:
            return JSONResponse({"status": "busy", "model": self.model})
        except TimeoutError:
            return JSONResponse({"status": "no painter answers", "model": self.model}, 503)
        return JSONResponse({"status": "ready", "model": self.model})

    @web.post("/generate")
    async def generate(self, request: Request, mask: bool = False) -> Response:
        """A multipart form in, a PNG out: the picture, or its mask with `?mask=1`.

        With `Accept: application/json` both, in base64.
        """
        fields = await read_form(request, self.settings)
        seconds = self.settings.timeout_seconds
        try:
            trouble, painting = await asyncio.wait_for(self._ask("paint", fields), seconds)
        except BackPressureError as error:
            raise BadRequestError(503, "All painters are busy; try again in a moment.") from error
        except TimeoutError as error:
            raise BadRequestError(504, f"Painting took longer than {seconds:g} s; ask for fewer steps.") from error
        except RayTaskError as error:
            raise BadRequestError(500, f"Painting failed: {type(error.cause).__name__}: {error.cause}") from error
        if trouble:
            raise BadRequestError(422, trouble)
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse(painting)
        return Response(base64.b64decode(painting["mask" if mask else "picture"]), media_type="image/png")

    async def _ask(self, method: str, *arguments: Any) -> Any:
        return await getattr(self.painters, method).remote(*arguments)


def build_app(uri: str, model: str, tracking_uri: str, settings: ServeConfig) -> serve.Application:
    """The front with its painters.

    Args:
        uri: The model's, `models:/name/version`.
        model: How to call it in answers.
        tracking_uri: Where the registry is.
        settings: Of the endpoint.
    """
    # Type checkers see the classes, not what @serve.deployment makes of them.
    painters = Painter.options(  # type: ignore[attr-defined]
        num_replicas=settings.replicas,
        max_ongoing_requests=2 * settings.max_batch_size,  # one batch is painted while the next one gathers
        max_queued_requests=settings.max_queued_requests,
        graceful_shutdown_timeout_s=_GRACE_SECONDS,
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if settings.use_gpu else 0},
    ).bind(uri, tracking_uri, settings)
    return Front.options(max_ongoing_requests=_MAX_CONNECTIONS).bind(painters, model, settings)  # type: ignore[attr-defined]
