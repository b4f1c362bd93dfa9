"""Painters that stop halfway, until a test lets them go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator

from model.painting.painter import RequestPainter
from stages.serve.painting import Event, Fields, PaintingFailedError, Preview
from tests.support.local_painters import LocalPainters


class HeldPainters(LocalPainters):
    """Note what is asked for. Stop after the first preview until `go_on`; with `fails`, painting fails there."""

    address = ""  # of their server

    def __init__(self, model: RequestPainter) -> None:
        super().__init__(model)
        self.go_on = threading.Event()
        self.closed = threading.Event()
        self.fails = False
        self.asked: list[Fields] = []

    async def paint(self, fields: Fields, seconds: float) -> AsyncGenerator[Event, None]:
        self.asked.append(fields)
        events = super().paint(fields, seconds)
        try:
            async for event in events:
                yield event
                while isinstance(event, Preview) and not self.go_on.is_set():
                    await asyncio.sleep(0.01)
                if isinstance(event, Preview) and self.fails:
                    raise PaintingFailedError("secret")
        finally:
            await events.aclose()
            self.closed.set()

    def subjects(self) -> list[tuple[str, bytes]]:
        """Words and pictures of the last request."""
        return [(subject["word"], subject["picture"]) for subject in self.asked[-1]["subjects"]]
