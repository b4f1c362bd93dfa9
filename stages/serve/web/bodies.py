"""Bodies of HTTP requests, counted while they arrive: one that is too large is never stored."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from model.files import TextError, decode_text
from model.pictures.decoding import PictureError, open_picture
from stages.serve.web.errors import RequestError

_OVERHEAD_BYTES = 64_000  # field names, boundaries, texts
MAX_TEXT_CHARACTERS = 2000


@asynccontextmanager
async def arriving_within(seconds: float) -> AsyncGenerator[None, None]:
    """A block that reads a body.

    Raises:
        RequestError: 408; it did not arrive in time.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise RequestError(408, f"The request did not arrive within {seconds:g} s.") from error


@asynccontextmanager
async def multipart_form(
    request: Request, max_bytes: int, max_parts: int, example: str, files: str = "pictures"
) -> AsyncGenerator[FormData, None]:
    """The parts of a multipart form; its temporary files are deleted at the end of the block.

    Args:
        request: Its body is read.
        max_bytes: Of all files together.
        max_parts: Of the form.
        example: For the message, what to send.
        files: What the files are.

    Raises:
        RequestError: 413 too large, 415 no multipart form, 422 it cannot be read.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise RequestError(415, f"Send a multipart form with {example} (curl: -F), {files} as files and not as URLs.")
    limit = max_bytes + _OVERHEAD_BYTES
    body = _limited(request, limit, f"The {files} are too large; at most {max_bytes} bytes are accepted.")
    parser = MultiPartParser(request.headers, body, max_files=max_parts, max_fields=max_parts, max_part_size=limit)
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        reason = getattr(error, "message", "it has no boundary").rstrip(".")
        raise RequestError(422, f"The multipart form cannot be read: {reason}.") from error
    try:
        yield form
    finally:
        await form.close()


async def read_json_object(request: Request) -> dict[str, Any]:
    """The fields of a JSON object.

    Raises:
        RequestError: 413 too large, 415 no JSON, 400 not readable or no object.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError(415, "Send a JSON object (Content-Type: application/json).")
    too_large = f"The body is too large; at most {_OVERHEAD_BYTES} bytes are accepted."
    body = b"".join([chunk async for chunk in _limited(request, _OVERHEAD_BYTES, too_large)])
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, "The body is no valid JSON.") from error
    if not isinstance(fields, dict):
        raise RequestError(400, "The body must be a JSON object.")
    return fields


async def _limited(request: Request, limit: int, message: str) -> AsyncGenerator[bytes, None]:
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise RequestError(413, message)
        yield chunk


async def read_text(value: str | UploadFile, name: str, status: int) -> str:
    """A field's text. Browsers' `Blob`s and some clients send text as a file.

    Args:
        value: A part of a form.
        name: Of the field.
        status: Of the error.

    Raises:
        RequestError: It is not text.
    """
    try:
        return decode_text(await value.read()) if isinstance(value, UploadFile) else value
    except TextError as error:
        raise RequestError(status, f"The field {name!r} must be text in UTF-8: {error}.", name) from error


def check_characters(text: str, name: str, status: int) -> None:
    """Check the length of a text.

    Raises:
        RequestError: It is too long.
    """
    if len(text) > MAX_TEXT_CHARACTERS:
        message = f"The field {name!r} has {len(text)} characters; at most {MAX_TEXT_CHARACTERS}."
        raise RequestError(status, message, name)


async def read_pictures(parts: list[Any], name: str, max_bytes: int, status: int) -> list[bytes]:
    """The encoded pictures in parts of a form.

    Args:
        parts: All with this name.
        name: Of the field.
        max_bytes: Of all of them.
        status: Of the error for a part that is no file.

    Raises:
        RequestError: 413 too large; a part is no file.
    """
    if not all(isinstance(part, UploadFile) for part in parts):
        raise RequestError(status, f"The field {name!r} must be a picture file (curl: -F {name}=@file.png).", name)
    pictures = [await part.read() for part in parts]
    if sum(map(len, pictures)) > max_bytes:
        raise RequestError(413, f"The pictures are too large; at most {max_bytes} bytes are accepted.", name)
    return pictures


async def check_pixels(files: Sequence[tuple[str, str, bytes]], limit: int, status: int) -> None:
    """Check by their headers that pictures can be decoded without taking up too much memory.

    Args:
        files: Of each picture the field, how a message names it, and its bytes.
        limit: Pixels of all of them together.
        status: Of the error.

    Raises:
        RequestError: One is no picture, or they have too many pixels.
    """
    await asyncio.to_thread(_check_pixels, files, limit, status)


def _check_pixels(files: Sequence[tuple[str, str, bytes]], limit: int, status: int) -> None:
    left = limit
    for field, name, data in files:
        try:
            with open_picture(data, limit, name) as opened:
                width, height = opened.image.size
        except PictureError as error:
            raise RequestError(status, str(error), field, "invalid_value") from error
        left -= width * height
        if left < 0:
            message = f"The pictures and masks have more than {limit} pixels together; send smaller ones."
            raise RequestError(status, message, field, "invalid_value")
