"""Headers of every answer."""

from __future__ import annotations

import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Browsers do not guess types, name no address to other sites, keep no picture, and show nothing of ours elsewhere.
_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_REQUEST_ID = "x-request-id"


class HeadersMiddleware:
    """Adds the headers that an answer does not have yet, and an id for those who ask why it is as it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Serve's proxy gives an id to each request that has none, and adds it to the answer.
        has_id = _REQUEST_ID in Headers(scope=scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY.items():
                    headers.setdefault(name, value)
                if not has_id:
                    headers.setdefault(_REQUEST_ID, secrets.token_hex(16))
            await send(message)

        await self._app(scope, receive, send_with_headers)
