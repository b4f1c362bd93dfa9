"""OpenAI's answers: an object with all pictures, or server-sent events. Our own fields stand beside theirs."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from typing import Any

from stages.serve.openai_api.requests import ImageRequest
from stages.serve.painting import Accepted, Event, Painted, Preview, Refused
from stages.serve.web.errors import RequestError, error_body, painting_errors


def images_response(
    request: ImageRequest, model: str, accepted: Accepted, pictures: Iterable[Painted], seconds: float
) -> dict[str, Any]:
    """The body of an answer.

    Args:
        request: What was asked for.
        model: Its name.
        accepted: The painter's answer.
        pictures: All of them.
        seconds: Since the request arrived.
    """
    asked, seeds = request.asked, request.painting["seeds"]
    data = [
        {
            "b64_json": _text(painted.picture),
            "seed": seeds[painted.index],
            **({"mask_b64_json": _text(painted.mask)} if request.return_masks and painted.mask else {}),
            "timings": _rounded(painted.timings),
        }
        for painted in sorted(pictures, key=lambda painted: painted.index)
    ]
    return {
        "created": int(time.time()),
        "background": "opaque",
        "data": data,
        "output_format": asked.output_format,
        "size": _size(accepted),
        "usage": _usage(accepted, len(data)),
        **_identifier(request),
        "model": model,
        "version": accepted.title,
        "seeds": seeds,
        "words": accepted.words,
        "concepts": request.painting["concepts"],
        "timings": {"total": round(seconds, 4)},
    }


async def server_sent_events(
    request: ImageRequest, accepted: Accepted, events: AsyncGenerator[Event, None], deadline: float
) -> AsyncIterator[str]:
    """Previews and pictures as they are made. An error ends the stream: its status has been sent before.

    Args:
        request: What was asked for.
        accepted: The first event.
        events: The others.
        deadline: Of requests, seconds.
    """
    try:
        with painting_errors(deadline):
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Preview | Painted):
                        yield _server_sent(_event(request, accepted, event))
    except RequestError as error:
        yield _server_sent({"type": "error", **error_body(error)})


def _event(request: ImageRequest, accepted: Accepted, event: Preview | Painted) -> dict[str, Any]:
    fields = {
        "b64_json": _text(event.picture),
        "background": "opaque",
        "created_at": int(time.time()),
        "output_format": request.asked.output_format,
        "quality": "auto",
        "size": _size(accepted),
        "index": event.index,
        "seed": request.painting["seeds"][event.index],
        **({"mask_b64_json": _text(event.mask)} if event.mask else {}),
    }
    if isinstance(event, Preview):
        return {"type": f"{request.kind}.partial_image", "partial_image_index": event.number, **fields}
    return {
        "type": f"{request.kind}.completed",
        "usage": _usage(accepted, 1),
        **fields,
        **_identifier(request),
        "version": accepted.title,
        "words": accepted.words,
        "timings": _rounded(event.timings),
    }


async def first_event(request: ImageRequest, events: AsyncGenerator[Event, None]) -> Accepted:
    """The painter's answer to the request; the other events follow.

    Raises:
        RequestError: It is refused.
    """
    event = await anext(events)
    if isinstance(event, Refused):
        await events.aclose()
        raise request.refusal(event)
    assert isinstance(event, Accepted)
    return event


def _usage(accepted: Accepted, pictures: int) -> dict[str, Any]:
    """Tokens: of the prompt, of the subjects' image encoders, and of the latents, which have a position for each."""
    read = accepted.text_tokens + accepted.reference_tokens
    painted = pictures * accepted.picture_tokens
    return {
        "input_tokens": read,
        "input_tokens_details": {"text_tokens": accepted.text_tokens, "image_tokens": accepted.reference_tokens},
        "output_tokens": painted,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": painted},
        "total_tokens": read + painted,
    }


def _identifier(request: ImageRequest) -> dict[str, str]:
    """The identifier of the end user; as in OpenAI's API, `user` is its older name."""
    identifier = request.asked.safety_identifier or request.asked.user
    return {"safety_identifier": identifier} if identifier else {}


def _size(accepted: Accepted) -> str:
    return "{}x{}".format(*accepted.size)


def _rounded(timings: dict[str, float]) -> dict[str, float]:
    return {name: round(seconds, 4) for name, seconds in timings.items()}


def _text(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def _server_sent(fields: dict[str, Any]) -> str:
    return f"event: {fields['type']}\ndata: {json.dumps(fields)}\n\n"
