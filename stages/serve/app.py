"""The HTTP front: it validates requests, passes them to the painters, and answers with pictures or errors.

Annotations are evaluated at once here (no `from __future__ import annotations`): Serve pickles the routes, and FastAPI
could not resolve the names of their types afterwards.
"""

import asyncio
import base64
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from stages.serve.config import ServeConfig
from stages.serve.form import RequestError, read_form
from stages.serve.painter import Answer, Painter
from stages.serve.served_model import ServedModel

_RETRY_AFTER_SECONDS = 2
_HEALTH_SECONDS = 5
_GRACE_SECONDS = 5  # for pictures that are being painted when the server is stopped
_MAX_CONNECTIONS = 1000  # of the front, which only waits

web = FastAPI(title="Realword", docs_url=None, redoc_url=None, openapi_url=None)


@web.exception_handler(RequestError)
async def _error_response(_: Request, error: RequestError) -> JSONResponse:
    headers = {"Retry-After": str(_RETRY_AFTER_SECONDS)} if error.status == 503 else None
    return JSONResponse({"error": error.message}, error.status, headers)


@web.exception_handler(HTTPException)
async def _no_such_address(request: Request, error: HTTPException) -> JSONResponse:
    message = f"There is no {request.method} {request.url.path}; there are GET /, GET /health and POST /generate."
    return JSONResponse({"error": message}, error.status_code, error.headers)


@serve.deployment
@serve.ingress(web)
class Front:
    """Validates the form of requests, and passes them to the painters."""

    def __init__(self, painters: DeploymentHandle, model: str, settings: ServeConfig) -> None:
        self.painters = painters
        self.model = model
        self.settings = settings
        self.page = (Path(__file__).parent / "page.html").read_text().replace("{{ model }}", model)

    @web.api_route("/", methods=["GET", "HEAD"])
    async def index(self) -> HTMLResponse:
        """A page with the form."""
        return HTMLResponse(self.page)

    @web.api_route("/health", methods=["GET", "HEAD"])
    async def health(self) -> JSONResponse:
        """200 while a painter answers, or is busy painting."""
        try:
            await asyncio.wait_for(self._call_painter("ready"), _HEALTH_SECONDS)
        except BackPressureError:
            return JSONResponse({"status": "busy", "model": self.model})
        except TimeoutError:
            return JSONResponse({"status": "no painter answers", "model": self.model}, 503)
        return JSONResponse({"status": "ready", "model": self.model})

    @web.post("/generate")
    async def generate(self, request: Request, mask: bool = False) -> Response:
        """A multipart form in, a PNG out: the picture, or its mask with `?mask=1`.

        With `Accept: application/json` both, in base64. A prompt that is too long is painted as far as it is read; the
        JSON's `warning` or the header `X-Warning` says what was cut off.
        """
        answer = await self._paint(await read_form(request, self.settings))
        if "application/json" in request.headers.get("accept", "").lower():
            pictures = {"picture": answer.picture, "mask": answer.mask}
            encoded = {name: base64.b64encode(png).decode() for name, png in pictures.items()}
            return JSONResponse(encoded | ({"warning": answer.warning} if answer.warning else {}))
        headers = {"X-Warning": ascii(answer.warning)[1:-1]} if answer.warning else {}
        return Response(answer.mask if mask else answer.picture, headers=headers, media_type="image/png")

    async def _paint(self, fields: dict[str, Any]) -> Answer:
        seconds = self.settings.timeout_seconds
        try:
            answer: Answer = await asyncio.wait_for(self._call_painter("paint", fields), seconds)
        except BackPressureError as error:
            raise RequestError(503, "All painters are busy; try again in a moment.") from error
        except TimeoutError as error:
            raise RequestError(504, f"Painting took longer than {seconds:g} s; ask for fewer steps.") from error
        except RayTaskError as error:
            raise RequestError(500, f"Painting failed: {type(error.cause).__name__}: {error.cause}") from error
        if answer.error:
            raise RequestError(422, answer.error)
        return answer

    async def _call_painter(self, method: str, *arguments: Any) -> Any:
        return await getattr(self.painters, method).remote(*arguments)


def build_app(model: ServedModel, settings: ServeConfig) -> serve.Application:
    """The front with its painters.

    Args:
        model: The model to serve.
        settings: Of the endpoint.
    """
    # Type checkers see the classes, not what @serve.deployment makes of them.
    painters = Painter.options(  # type: ignore[attr-defined]
        num_replicas=settings.replicas,
        max_ongoing_requests=2 * settings.max_batch_size,  # one batch is painted while the next one gathers
        max_queued_requests=settings.max_queued_requests,
        graceful_shutdown_timeout_s=_GRACE_SECONDS,
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if settings.use_gpu else 0},
    ).bind(model.load, settings.replicas, settings.max_batch_size)
    front = Front.options(max_ongoing_requests=_MAX_CONNECTIONS)  # type: ignore[attr-defined]
    return front.bind(painters, model.title, settings)
