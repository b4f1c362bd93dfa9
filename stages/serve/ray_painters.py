"""The painters as a deployment of Ray Serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from stages.serve.painting import Accepted, Event, Fields, NoPainterError, PaintersBusyError, PaintingFailedError

_READY_SECONDS = 5


class RayPainters:
    """`stages.serve.painting.Painters` behind a handle of the deployment `Painter`.

    Args:
        handle: Of the deployment.
        title: Until a painter has answered.
    """

    def __init__(self, handle: DeploymentHandle, title: str) -> None:
        self._handle = handle
        self.title = title

    async def paint(self, fields: Fields) -> AsyncGenerator[Event, None]:
        """See `Painters.paint`."""
        events = self._handle.options(stream=True).paint.remote(fields)
        try:
            with _our_errors():
                async for event in events:
                    if isinstance(event, Accepted):
                        self.title = event.title
                    yield event
        except (GeneratorExit, asyncio.CancelledError):  # nobody waits any longer
            events.cancel()
            raise

    async def check_ready(self) -> None:
        """See `Painters.check_ready`."""
        with _our_errors():
            try:
                await asyncio.wait_for(self._ask_ready(), _READY_SECONDS)
            except TimeoutError as error:
                raise NoPainterError from error

    async def _ask_ready(self) -> None:
        self.title = await self._handle.ready.remote()


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except BackPressureError as error:
        raise PaintersBusyError from error
    except (RayActorError, DeploymentUnavailableError) as error:
        raise NoPainterError from error
    except RayTaskError as error:
        raise PaintingFailedError(f"{type(error.cause).__name__}: {error.cause}") from error
