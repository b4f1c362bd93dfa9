"""The routes of OpenAI's images API and its list of models."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from stages.serve.config import ServeConfig
from stages.serve.openai_api.answers import first_event, images_response, server_sent_events
from stages.serve.openai_api.requests import ImageRequest, read_edit, read_generation
from stages.serve.openai_api.schema import EDIT, GENERATION, MODEL, MODELS
from stages.serve.painting import Painted, Painters, until_deadline
from stages.serve.web.access import count_pictures
from stages.serve.web.bodies import arriving_within
from stages.serve.web.errors import RequestError, painting_errors


def openai_routes(painters: Painters, name: str, settings: ServeConfig) -> APIRouter:
    """The routes.

    Args:
        painters: Paint the requests.
        name: The model's.
        settings: Limits of requests.
    """
    routes = APIRouter(prefix="/v1")
    model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "realword"}

    @routes.get("/models", openapi_extra=MODELS)
    async def list_models() -> JSONResponse:
        """The models that are served."""
        return JSONResponse({"object": "list", "data": [model]})

    @routes.get("/models/{model_id:path}", openapi_extra=MODEL)
    async def get_model(model_id: str) -> JSONResponse:
        """One of them."""
        _check_model(model_id, name)
        return JSONResponse(model)

    @routes.post("/images/generations", openapi_extra=GENERATION)
    async def generate_images(request: Request) -> Response:
        """Pictures from a prompt alone."""
        async with arriving_within(settings.timeout_seconds):
            asked = await read_generation(request, settings)
        return await answer(request, asked)

    @routes.post("/images/edits", openapi_extra=EDIT)
    async def edit_images(request: Request) -> Response:
        """Pictures of the subjects of your pictures, in the words of the prompt that stand for them."""
        async with arriving_within(settings.timeout_seconds):
            asked = await read_edit(request, settings)
        return await answer(request, asked)

    async def answer(received: Request, request: ImageRequest) -> Response:
        started, seconds = time.perf_counter(), settings.timeout_seconds
        count_pictures(received.scope, request.asked.n)
        if request.asked.model is not None:
            _check_model(request.asked.model, name)
        events = until_deadline(painters.paint(request.painting), seconds)
        with painting_errors(seconds):
            accepted = await first_event(request, events)
            if request.asked.stream:
                stream = server_sent_events(request, accepted, events, seconds)
                return StreamingResponse(stream, media_type="text/event-stream")
            pictures = [event async for event in events if isinstance(event, Painted)]
        body: dict[str, Any] = images_response(request, name, accepted, pictures, time.perf_counter() - started)
        return JSONResponse(body)

    return routes


def _check_model(asked: str, name: str) -> None:
    if asked != name:
        message = f"There is no model {asked[:80]!r}; this server has {name!r}."
        raise RequestError(404, message, "model", "model_not_found")
