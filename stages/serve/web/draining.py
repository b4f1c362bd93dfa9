"""The end of a server: what is running is finished, and nothing new is begun."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from stages.serve.web.errors import RequestError

_ALIVE = "/health"


class Draining:
    """Counts the requests that are being answered, and says whether new ones are refused."""

    def __init__(self) -> None:
        self.has_begun = False
        self._running = 0
        self._changed = asyncio.Condition()

    async def drain(self) -> None:
        """Refuse new requests; return when the others are answered."""
        self.has_begun = True
        async with self._changed:
            await self._changed.wait_for(lambda: self._running == 0)

    async def __aenter__(self) -> None:
        """Begin to answer a request."""
        self._running += 1

    async def __aexit__(self, *_: object) -> None:
        """It is answered."""
        self._running -= 1
        async with self._changed:
            self._changed.notify_all()


class DrainingMiddleware:
    """Answers requests with 503 when the draining has begun, except that the server is alive."""

    def __init__(self, app: ASGIApp, draining: Draining) -> None:
        self._app = app
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == _ALIVE:
            await self._app(scope, receive, send)
            return
        if self._draining.has_begun:
            raise RequestError(503, "The server is stopping; ask another one, or try again later.")
        async with self._draining:
            await self._app(scope, receive, send)
