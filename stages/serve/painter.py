"""The replica that holds the model and paints in batches.

This module imports nothing of `model`, as `stages.serve.served_model` explains.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray import serve

_BATCH_WAIT_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is wrong with a request, or its picture and mask as PNG, and what was not done as asked."""

    error: str = ""
    picture: bytes = b""
    mask: bytes = b""
    warning: str = ""


@serve.deployment
class Painter:
    """Holds one copy of the model. Requests that wait at the same time are painted together.

    Args:
        load: Returns the model.
        replicas: How many painters share this machine's cores.
        max_batch_size: Pictures that are painted together at most.
    """

    def __init__(self, load: Callable[[], Any], replicas: int, max_batch_size: int) -> None:
        import torch

        torch.set_num_threads(max(1, (os.cpu_count() or 1) // replicas))
        self.model = load()
        self.paint_batch.set_max_batch_size(max_batch_size)

    async def paint(self, fields: dict[str, Any]) -> Answer:
        """Answer one request. An invalid one is refused here, before it enters a batch."""
        try:
            request = await asyncio.to_thread(self.model.prepare, **fields)
        except ValueError as error:
            return Answer(error=str(error))
        picture, mask = await self.paint_batch(request)
        cut_off = getattr(request, "cut_off", "")  # the code of models that were registered before has none
        warning = f"The text encoder does not read the end of the prompt: {cut_off!r}." if cut_off else ""
        return Answer(picture=picture, mask=mask, warning=warning)

    @serve.batch(batch_wait_timeout_s=_BATCH_WAIT_SECONDS)
    async def paint_batch(self, requests: list[Any]) -> list[tuple[bytes, bytes]]:
        """Paint in a thread: the event loop goes on answering."""
        painted: list[tuple[bytes, bytes]] = await asyncio.to_thread(self.model.paint, requests)
        return painted

    async def ready(self) -> bool:
        """Answers as soon as the model is loaded."""
        return True
