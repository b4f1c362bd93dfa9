"""What passes between the HTTP front and the painters: a request's fields one way, events the other way.

This module imports nothing of `model`, as `stages.serve.served_model` explains.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from stages.serve.served_model import ServedConcept
from stages.serve.uploaded_concepts import OtherFiles


@dataclass(frozen=True, kw_only=True)
class Served:
    """What painters paint.

    Attributes:
        title: Of the model: its name and version.
        concepts: That requests can name.
    """

    title: str
    concepts: tuple[ServedConcept, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PainterLimits:
    """What a painter may do at once: settings of `ServeConfig`, which imports `model`.

    Attributes:
        batch: Pictures that are painted at once.
        waiting: Pictures that wait for a place in the batch.
        cached_bytes: Of subjects' encodings that are kept.
        safety_checker: A Stable Diffusion whose checker refuses pictures; None: nothing is refused.
        threads: Of torch, for the painting; None: as it is.
    """

    batch: int
    waiting: int
    cached_bytes: int
    safety_checker: str | None = None
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A painter has taken the request; it is valid.

    Attributes:
        size: Width and height of the pictures, pixels.
        text_tokens: As in `model.painting.request.PreparedRequest`, also the next two.
        reference_tokens: Of its subjects.
        picture_tokens: Of one picture.
        words: Of the subjects, also those that the painter has found; None of one with a mask.
        title: Of the model that paints it: all pictures of a request are painted by one version.
        warning: What is not done as asked; "" if all is.
    """

    size: tuple[int, int]
    text_tokens: int
    reference_tokens: int
    picture_tokens: int
    title: str
    words: list[str | None] = field(default_factory=list)
    warning: str = ""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """The request is invalid, or, after `Accepted`, a painted picture may not be shown.

    Attributes:
        field: As in `model.painting.request.RequestFieldError`; "" for the request as a whole.
        message: One sentence.
        code: For programs.
    """

    field: str
    message: str
    code: str = "invalid_value"


@dataclass(frozen=True, kw_only=True)
class Busy:
    """The request is valid, but because of others it would wait too long.

    Attributes:
        seconds: Until all accepted requests will have been painted, as far as can be known.
    """

    seconds: float


@dataclass(frozen=True, kw_only=True)
class TooLong:
    """The request is valid, but even alone it could not be painted before its deadline."""


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
        timings: Seconds by part, as in `model.painting.request.PaintedPicture`.
        steps: Of its denoising.
        batch_size: Pictures that took these steps together, the mean.
        encodings_kept: Pictures of its subjects whose encoding was kept from an earlier request.
        encodings_made: Pictures of its subjects that were encoded for it.
    """

    index: int
    picture: bytes
    mask: bytes | None
    timings: dict[str, float]
    steps: int
    batch_size: float
    encodings_kept: int = 0
    encodings_made: int = 0


Event = Accepted | Refused | Busy | TooLong | Preview | Painted
Fields = Mapping[str, Any]  # the arguments of `model.painting.painter.RequestPainter.prepare`


class PaintersBusyError(Exception):
    """The painters cannot paint the request in time.

    Attributes:
        seconds: Until it may be sent again.
    """

    def __init__(self, seconds: float = 1.0) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class NoPainterError(Exception):
    """No painter can take the request, or the one that had taken it is gone."""


class PaintingFailedError(Exception):
    """An error of ours; the message names it."""


class PictureRefusedError(Exception):
    """A painted picture may not be shown."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.message)
        self.code = refused.code


class PaintingTimeoutError(Exception):
    """The deadline of a request has passed while it was being painted, or is too early for it."""


class Painters(Protocol):
    """All painters behind one queue."""

    @property
    def served(self) -> Served:
        """What the painter that answered last paints."""
        ...

    def paint(self, fields: Fields, seconds: float) -> AsyncGenerator[Event, None]:
        """Paint a request: `Accepted`, then previews and pictures as they are made; or one event that refuses it.

        Closing the generator before its end stops the painting at its next step.

        Args:
            fields: What to paint.
            seconds: Until the deadline.

        Raises:
            PaintersBusyError: No painter has taken it.
            NoPainterError: Ask again later.
            PaintingFailedError: Asking again would fail again.
        """
        ...

    async def check_ready(self) -> Served:
        """What a painter paints, as soon as one answers.

        Raises:
            PaintersBusyError: All of them are painting.
            NoPainterError: None can answer.
        """
        ...

    async def check_upload(self, folder: str, name: str, other: OtherFiles | None) -> ServedConcept | Refused:
        """Check a concept that is to be uploaded.

        Args:
            folder: With its files, on this machine.
            name: Of the concept.
            other: Says more about files of another tool; None: the files are a concept's folder.

        Returns:
            The concept with the folder to keep, that of its files or one beside it; or why it cannot be served.

        Raises:
            PaintersBusyError: As `check_ready`; also the next two.
            NoPainterError: None can answer.
            PaintingFailedError: Asking again would fail again.
        """
        ...


async def paint_until(painters: Painters, fields: Fields, seconds: float) -> AsyncGenerator[Event, None]:
    """The events of a request, until a deadline; then the request is cancelled.

    Raises:
        PaintersBusyError: The painters cannot paint it in time.
        PictureRefusedError: A painted picture may not be shown.
        NoPainterError: It has passed before a painter took the request.
        PaintingTimeoutError: It has passed afterwards, or the painting would take longer.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    is_taken = False
    events = painters.paint(fields, seconds)
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
            if isinstance(event, Busy):
                raise PaintersBusyError(event.seconds)
            if isinstance(event, TooLong):
                raise PaintingTimeoutError
            if isinstance(event, Refused) and is_taken:
                raise PictureRefusedError(event)
            is_taken = True
            yield event
    finally:
        await events.aclose()
