"""The routes of OpenAI's images API and its list of models."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from stages.serve.config import ServeConfig
from stages.serve.openai_api.answers import first_event, images_response, server_sent_events
from stages.serve.openai_api.concept_uploads import ConceptUploads
from stages.serve.openai_api.models import Models
from stages.serve.openai_api.requests import ImageRequest, read_edit, read_generation
from stages.serve.openai_api.schema import CONCEPT, DELETED, EDIT, GENERATION, MODEL, MODELS
from stages.serve.painting import Painted, Painters, paint_until
from stages.serve.web.access import count_pictures
from stages.serve.web.bodies import arriving_within
from stages.serve.web.connection import while_connected
from stages.serve.web.errors import painting_errors


def openai_routes(painters: Painters, models: Models, uploads: ConceptUploads, settings: ServeConfig) -> APIRouter:
    """The routes.

    Args:
        painters: Paint the requests.
        models: That requests can name.
        uploads: Concepts that clients upload.
        settings: Limits of requests.
    """
    routes = APIRouter(prefix="/v1")

    @routes.get("/models", openapi_extra=MODELS)
    async def list_models() -> JSONResponse:
        """The models that are served."""
        return JSONResponse({"object": "list", "data": await models.entries()})

    @routes.get("/models/{model_id:path}", openapi_extra=MODEL)
    async def get_model(model_id: str) -> JSONResponse:
        """One of them."""
        return JSONResponse(await models.entry(model_id))

    @routes.delete("/models/{model_id:path}", openapi_extra=DELETED)
    async def delete_model(model_id: str) -> JSONResponse:
        """Delete an uploaded concept."""
        return JSONResponse(await uploads.delete(model_id))

    @routes.post("/concepts", openapi_extra=CONCEPT)
    async def upload_concept(request: Request) -> JSONResponse:
        """Upload a learned concept, which is a model then."""
        return JSONResponse(await uploads.add(request))

    @routes.post("/images/generations", openapi_extra=GENERATION)
    async def generate_images(request: Request) -> Response:
        """Pictures from a prompt alone."""
        async with arriving_within(settings.timeout_seconds):
            asked = await read_generation(request, settings, models)
        return await while_connected(request, answer(request, asked))

    @routes.post("/images/edits", openapi_extra=EDIT)
    async def edit_images(request: Request) -> Response:
        """Pictures of the subjects of your pictures, in the words of the prompt that stand for them."""
        async with arriving_within(settings.timeout_seconds):
            asked = await read_edit(request, settings, models)
        return await while_connected(request, answer(request, asked))

    async def answer(received: Request, request: ImageRequest) -> Response:
        started, seconds = time.perf_counter(), settings.timeout_seconds
        count_pictures(received.scope, request.asked.n)
        events = paint_until(painters, request.painting, seconds)
        with painting_errors(seconds):
            accepted = await first_event(request, events)
            if request.asked.stream:
                stream = server_sent_events(request, accepted, events, seconds)
                return StreamingResponse(stream, media_type="text/event-stream")
            async with aclosing(events):
                pictures = [event async for event in events if isinstance(event, Painted)]
        model = request.asked.model or models.name
        body: dict[str, Any] = images_response(request, model, accepted, pictures, time.perf_counter() - started)
        return JSONResponse(body)

    return routes
