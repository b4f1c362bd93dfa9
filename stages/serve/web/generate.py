"""`POST /generate`: one subject in a form, a PNG out."""

from __future__ import annotations

import base64
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import FormData

from stages.serve.config import ServeConfig
from stages.serve.painting import Accepted, Painted, Painters, Refused, paint_until
from stages.serve.web.bodies import (
    MAX_TEXT_CHARACTERS,
    arriving_within,
    check_characters,
    check_pixels,
    multipart_form,
    read_pictures,
    read_text,
)
from stages.serve.web.connection import while_connected
from stages.serve.web.errors import RequestError, painting_errors

FIELDS = ("subject", "word", "prompt", "seed", "steps")
MAX_SEED = 2**63 - 1
_TEXT = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT_CHARACTERS}
_PROPERTIES = {
    "subject": {"type": "string", "format": "binary", "description": "A picture of the subject."},
    "word": {**_TEXT, "description": "The word of the prompt that the subject stands for.", "example": "mug"},
    "prompt": {**_TEXT, "example": "a photo of a mug in the snow"},
    "seed": {"type": "integer", "minimum": 0, "maximum": MAX_SEED, "default": 0},
    "steps": {"type": "integer", "minimum": 1},
}
_SCHEMA: dict[str, Any] = {"type": "object", "properties": _PROPERTIES, "required": ["subject", "word", "prompt"]}
_OPENAPI = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _SCHEMA}}}}


def generate_routes(painters: Painters, settings: ServeConfig) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post("/generate", openapi_extra=_OPENAPI, response_class=Response)
    async def generate(request: Request, mask: bool = False) -> Response:
        """A multipart form in, a PNG out: the picture, or its mask with `?mask=1`.

        With `Accept: application/json` both, in base64. A prompt that is too long is painted as far as it is read; the
        JSON's `warning` or the header `X-Warning` says what was cut off.
        """
        async with arriving_within(settings.timeout_seconds):
            fields = await read_form(request, settings)
        (subject,) = fields["subjects"]
        await check_pixels([("subject", "the picture", subject["picture"])], settings.max_picture_pixels, 422)
        fields["mark_generated"] = settings.mark_generated
        painted, warning = await while_connected(request, _paint(painters, fields, settings.timeout_seconds))
        pictures = {"picture": painted.picture, "mask": painted.mask or b""}
        if "application/json" in request.headers.get("accept", "").lower():
            encoded = {name: base64.b64encode(png).decode() for name, png in pictures.items()}
            return JSONResponse(encoded | ({"warning": warning} if warning else {}))
        headers = {"X-Warning": ascii(warning)[1:-1]} if warning else {}
        return Response(pictures["mask" if mask else "picture"], headers=headers, media_type="image/png")

    return routes


async def _paint(painters: Painters, fields: dict[str, Any], seconds: float) -> tuple[Painted, str]:
    """The picture and the painter's warning."""
    warning = ""
    with painting_errors(seconds):
        async with aclosing(paint_until(painters, fields, seconds)) as events:
            async for event in events:
                if isinstance(event, Refused):
                    param = "subject" if event.field == "picture" else event.field or None
                    raise RequestError(422, event.message, param, event.code)
                if isinstance(event, Accepted):
                    warning = event.warning
                if isinstance(event, Painted):
                    return event, warning
    raise RequestError(500, "Painting ended without a picture.")


async def read_form(request: Request, settings: ServeConfig) -> dict[str, Any]:
    """The fields of a multipart form, as `prepare` of the served model takes them.

    Raises:
        RequestError: 413 too large, 415 no multipart form, 422 a field is missing, unknown or invalid.
    """
    example = f"the fields {', '.join(FIELDS)}"
    async with multipart_form(request, settings.max_picture_bytes, len(FIELDS), example) as form:
        unknown = sorted(set(form) - set(FIELDS))
        if unknown:
            raise RequestError(
                422, f"There is no field {unknown[0]!r}; the fields are {', '.join(FIELDS)}.", unknown[0]
            )
        (picture,) = await read_pictures([form.get("subject")], "subject", settings.max_picture_bytes, 422)
        texts = {name: await _text(form, name) for name in FIELDS[1:]}
    for name in ("word", "prompt"):
        if not texts[name]:
            raise RequestError(422, f"The field {name!r} is missing or empty.", name)
    fields: dict[str, Any] = {"prompt": texts["prompt"], "subjects": [{"picture": picture, "word": texts["word"]}]}
    if texts["seed"]:
        fields["seeds"] = [_integer(texts["seed"], "seed", 0, MAX_SEED)]
    if texts["steps"]:
        fields["steps"] = _integer(texts["steps"], "steps", 1, settings.max_steps)
    return fields


async def _text(form: FormData, name: str) -> str:
    """A field's text; "" without the field."""
    text = await read_text(form.get(name, ""), name, 422)
    check_characters(text, name, 422)
    return text.strip()


def _integer(text: str, name: str, low: int, high: int) -> int:
    if not text.isdecimal() or not low <= int(text) <= high:
        raise RequestError(422, f"The field {name!r} must be a whole number from {low} to {high}.", name)
    return int(text)
