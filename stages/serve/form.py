"""The form of an HTTP request, validated. The picture stays encoded here: a painter decodes it, once."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from model.files import TextError, decode_text
from stages.serve.config import ServeConfig

FIELDS = ("subject", "word", "prompt", "seed", "steps")
_FORM_OVERHEAD_BYTES = 64_000  # field names, boundaries, the prompt
_MAX_PROMPT_CHARACTERS = 2000
_MAX_SEED = 2**63 - 1


class RequestError(Exception):
    """A request cannot be answered with a picture: a status code, and one sentence for the user."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


async def read_form(request: Request, settings: ServeConfig) -> dict[str, Any]:
    """The fields of a multipart form, as `prepare` of the registered model takes them.

    The body is counted while it arrives, so that one that is too large is never stored.

    Raises:
        RequestError: 413 too large, 415 no multipart form, 422 a field is missing, unknown or invalid.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise RequestError(415, f"Send a multipart form with the fields {', '.join(FIELDS)} (curl: -F).")
    body = _limited_body(request, settings.max_picture_bytes)
    try:
        form = await MultiPartParser(request.headers, body, max_files=len(FIELDS), max_fields=len(FIELDS)).parse()
    except (MultiPartException, KeyError) as error:
        reason = getattr(error, "message", "it has no boundary").rstrip(".")
        raise RequestError(422, f"The multipart form cannot be read: {reason}.") from error
    try:
        return await _fields(form, settings)
    finally:
        await form.close()  # and with it its temporary files


async def _limited_body(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit + _FORM_OVERHEAD_BYTES:
            raise _too_large(limit)
        yield chunk


def _too_large(limit: int) -> RequestError:
    return RequestError(413, f"The picture is too large; at most {limit} bytes are accepted.")


async def _fields(form: FormData, settings: ServeConfig) -> dict[str, Any]:
    unknown = sorted(set(form) - set(FIELDS))
    if unknown:
        raise RequestError(422, f"There is no field {unknown[0]!r}; the fields are {', '.join(FIELDS)}.")
    subject = form.get("subject")
    if not isinstance(subject, UploadFile):
        raise RequestError(422, "The field 'subject' must be a picture file (curl: -F subject=@file.png).")
    picture = await subject.read()
    if len(picture) > settings.max_picture_bytes:
        raise _too_large(settings.max_picture_bytes)
    fields: dict[str, Any] = {"subject": picture}
    for name in ("word", "prompt"):
        fields[name] = await _text(form, name)
        if not fields[name]:
            raise RequestError(422, f"The field {name!r} is missing or empty.")
    for name, low, high in (("seed", 0, _MAX_SEED), ("steps", 1, settings.max_steps)):
        if text := await _text(form, name):
            fields[name] = _integer(text, name, low, high)
    return fields


async def _text(form: FormData, name: str) -> str:
    """A field's text; "" without the field. Browsers' `Blob`s and some clients send text as a file."""
    value = form.get(name, "")
    if isinstance(value, UploadFile):
        try:
            value = decode_text(await value.read())
        except TextError as error:
            raise RequestError(422, f"The field {name!r} must be text in UTF-8: {error}.") from error
    if len(value) > _MAX_PROMPT_CHARACTERS:
        raise RequestError(422, f"The field {name!r} has {len(value)} characters; at most {_MAX_PROMPT_CHARACTERS}.")
    return value.strip()


def _integer(text: str, name: str, low: int, high: int) -> int:
    if not text.isdecimal() or not low <= int(text) <= high:
        raise RequestError(422, f"The field {name!r} must be a whole number from {low} to {high}.")
    return int(text)
