"""The end of a server: what is running is finished, and nothing new is begun."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from stages.serve.web.errors import RequestError, error_response

_ALIVE = "/health"


class DrainingApplication:
    """An ASGI application that can refuse new requests, and wait for those that it has.

    Args:
        application: Answers the requests.
    """

    def __init__(self, application: ASGIApp) -> None:
        self._application = application
        self._running = 0
        self._draining = False
        self._changed = asyncio.Condition()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request: 503 after `drain`, except that the server is alive."""
        if scope["type"] != "http" or scope["path"] == _ALIVE:
            await self._application(scope, receive, send)
        elif self._draining:
            error = RequestError(503, "The server is stopping; ask another one, or try again later.")
            await error_response(error)(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    async def drain(self) -> None:
        """Refuse new requests; return when the others are answered."""
        self._draining = True
        async with self._changed:
            await self._changed.wait_for(lambda: self._running == 0)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._running += 1
        try:
            await self._application(scope, receive, send)
        finally:
            self._running -= 1
            async with self._changed:
                self._changed.notify_all()
