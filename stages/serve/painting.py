"""What passes between the HTTP front and the painters: a request's fields one way, events the other way.

This module imports nothing of `model`, as `stages.serve.served_model` explains.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A painter has taken the request; it is valid.

    Attributes:
        size: Width and height of the pictures, pixels.
        text_tokens: As in `model.painting.request.PreparedRequest`, also the next two.
        reference_tokens: Of its subjects.
        picture_tokens: Of one picture.
        title: Of the model that paints it: all pictures of a request are painted by one version.
        warning: What is not done as asked; "" if all is.
    """

    size: tuple[int, int]
    text_tokens: int
    reference_tokens: int
    picture_tokens: int
    title: str
    warning: str = ""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """The request is invalid.

    Attributes:
        field: As in `model.painting.request.RequestFieldError`; "" for the request as a whole.
        message: One sentence.
    """

    field: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A picture that is being painted.

    Attributes:
        index: Of the picture in the request.
        number: Of the preview, from 0.
        picture: An encoded picture.
        mask: A PNG; None if there is no mask yet.
    """

    index: int
    number: int
    picture: bytes
    mask: bytes | None


@dataclass(frozen=True, kw_only=True)
class Painted:
    """A finished picture.

    Attributes:
        index: Of the picture in the request.
        picture: An encoded picture.
        mask: A PNG; None if it has none.
        timings: Seconds of the batch in which it was painted, by part.
    """

    index: int
    picture: bytes
    mask: bytes | None
    timings: dict[str, float]


Event = Accepted | Refused | Preview | Painted
Fields = Mapping[str, Any]  # the arguments of `model.painting.painter.RequestPainter.prepare`


class PaintersBusyError(Exception):
    """The queue of the painters is full."""


class NoPainterError(Exception):
    """No painter can take the request, or the one that had taken it is gone."""


class PaintingFailedError(Exception):
    """An error of ours; the message names it."""


class PaintingTimeoutError(Exception):
    """The deadline of a request has passed while it was being painted."""


class Painters(Protocol):
    """All painters behind one queue.

    Attributes:
        title: Of the model that answered last: its name and version.
    """

    title: str

    def paint(self, fields: Fields) -> AsyncGenerator[Event, None]:
        """Paint a request: `Refused`, or `Accepted` and then the previews and pictures as they are made.

        Closing the generator before its end cancels the request.

        Raises:
            PaintersBusyError: Nothing was painted.
            NoPainterError: Ask again later.
            PaintingFailedError: Asking again would fail again.
        """
        ...

    async def check_ready(self) -> None:
        """Return when a painter answers.

        Raises:
            PaintersBusyError: All of them are painting.
            NoPainterError: None can answer.
        """
        ...


async def until_deadline(events: AsyncGenerator[Event, None], seconds: float) -> AsyncGenerator[Event, None]:
    """The events, until a deadline; then the request is cancelled.

    Raises:
        NoPainterError: It has passed before a painter took the request.
        PaintingTimeoutError: It has passed afterwards.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    is_taken = False
    try:
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    event = await anext(events)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                if is_taken:
                    raise PaintingTimeoutError from error
                raise NoPainterError from error
            is_taken = True
            yield event
    finally:
        await events.aclose()
