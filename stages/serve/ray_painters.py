"""The painters as a deployment of Ray Serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import replace

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from stages.serve.painting import (
    Accepted,
    Event,
    Fields,
    NoPainterError,
    PaintersBusyError,
    PaintingFailedError,
    Refused,
    Served,
)
from stages.serve.served_model import ServedConcept
from stages.serve.uploaded_concepts import OtherFiles

_READY_SECONDS = 5


class RayPainters:
    """`stages.serve.painting.Painters` behind a handle of the deployment `Painter`.

    Args:
        handle: Of the deployment.
        served: Until a painter has answered.
    """

    def __init__(self, handle: DeploymentHandle, served: Served) -> None:
        self._handle = handle
        self.served = served

    async def paint(self, fields: Fields, seconds: float) -> AsyncGenerator[Event, None]:
        """See `Painters.paint`."""
        events = self._handle.options(stream=True).paint.remote(fields, seconds)
        try:
            with _our_errors():
                async for event in events:
                    if isinstance(event, Accepted):
                        self.served = replace(self.served, title=event.title)
                    yield event
        except (GeneratorExit, asyncio.CancelledError):  # nobody waits any longer
            events.cancel()
            raise

    async def check_ready(self) -> Served:
        """See `Painters.check_ready`."""
        with _our_errors():
            try:
                self.served = await asyncio.wait_for(self._ask_ready(), _READY_SECONDS)
            except TimeoutError as error:
                raise NoPainterError from error
        return self.served

    async def check_upload(self, folder: str, name: str, other: OtherFiles | None) -> ServedConcept | Refused:
        """See `Painters.check_upload`."""
        with _our_errors():
            answer: ServedConcept | Refused = await self._handle.check_upload.remote(folder, name, other)
        return answer

    async def _ask_ready(self) -> Served:
        served: Served = await self._handle.ready.remote()
        return served


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
