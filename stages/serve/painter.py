"""The replica that holds the model and paints in batches.

This module imports nothing of `model`, as `stages.serve.served_model` explains.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ray import serve

from stages.serve.painting import Accepted, Event, Fields, Painted, Preview, Refused
from stages.serve.served_model import ServedModel

_BATCH_WAIT_SECONDS = 0.02
_END = None  # of a request's events


@dataclass
class _Picture:
    """A picture to paint, and where its events go. `request` is a `model.painting.request.PictureRequest`."""

    index: int
    request: Any
    events: asyncio.Queue[Event | None]
    previews: int = 0

    def show(self, preview: Any) -> None:
        """Pass on a preview, in the event loop's thread."""
        shown = Preview(index=self.index, number=self.previews, picture=preview.picture, mask=preview.mask)
        self.previews += 1
        self.events.put_nowait(shown)


class ModelPainter:
    """Paints with one copy of the model, in threads: the event loop goes on answering.

    Args:
        model: As `ServedModel.load` returns it.
        title: As `ServedModel.title`.
        paint_batch: Calls `paint_together` with a picture and others that wait at the same time.
    """

    def __init__(self, model: Any, title: str, paint_batch: Callable[[_Picture], Awaitable[Any]]) -> None:
        self.model = model
        self.title = title
        self._paint_batch = paint_batch

    async def paint(self, fields: Fields) -> AsyncGenerator[Event, None]:
        """As `Painters.paint`. An invalid request is refused here, before it enters a batch."""
        try:
            prepared = await asyncio.to_thread(self.model.prepare, **fields)
        except ValueError as error:
            yield Refused(field=getattr(error, "field", ""), message=str(error))
            return
        height, width = prepared.pictures[0].size
        yield Accepted(
            size=(width, height),
            text_tokens=prepared.text_tokens,
            reference_tokens=prepared.reference_tokens,
            picture_tokens=prepared.picture_tokens,
            title=self.title,
            warning=_warning(prepared.cut_off),
        )
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        pictures = [_Picture(index, request, events) for index, request in enumerate(prepared.pictures)]
        painting = asyncio.gather(*(self._paint_picture(picture) for picture in pictures))
        painting.add_done_callback(lambda _: events.put_nowait(_END))
        try:
            while (event := await events.get()) is not _END:
                yield event
            await painting  # raises what went wrong
        finally:
            painting.cancel()

    async def _paint_picture(self, picture: _Picture) -> None:
        painted = await self._paint_batch(picture)
        picture.events.put_nowait(
            Painted(index=picture.index, picture=painted.picture, mask=painted.mask, timings=painted.timings)
        )

    async def paint_together(self, pictures: list[_Picture]) -> list[Any]:
        """Paint a batch."""
        loop = asyncio.get_running_loop()

        def show(number: int, preview: Any) -> None:
            loop.call_soon_threadsafe(pictures[number].show, preview)

        return await asyncio.to_thread(self.model.paint, [picture.request for picture in pictures], show)


def _warning(cut_off: str) -> str:
    return f"The text encoder does not read the end of the prompt: {cut_off!r}." if cut_off else ""


@serve.deployment
class Painter:
    """Holds one copy of the model. Pictures that wait at the same time are painted together.

    Args:
        model: What to paint with.
        replicas: How many painters may share this machine's cores.
        max_batch_size: Pictures that are painted together at most.
    """

    def __init__(self, model: ServedModel, replicas: int, max_batch_size: int) -> None:
        import torch

        torch.set_num_threads(max(1, (os.cpu_count() or 1) // replicas))
        self.painter = ModelPainter(model.load(), model.title, self.paint_batch)
        self.paint_batch.set_max_batch_size(max_batch_size)

    async def paint(self, fields: Fields) -> AsyncGenerator[Event, None]:
        """See `ModelPainter.paint`."""
        async for event in self.painter.paint(fields):
            yield event

    @serve.batch(batch_wait_timeout_s=_BATCH_WAIT_SECONDS)
    async def paint_batch(self, pictures: list[_Picture]) -> list[Any]:
        """Serve gathers the pictures of a batch."""
        return await self.painter.paint_together(pictures)

    async def ready(self) -> str:
        """The model's title, as soon as the model is loaded."""
        return self.painter.title
