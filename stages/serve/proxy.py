"""What clients may not ask of Ray Serve's proxy, which passes requests to the front.

Serve takes orders from headers: how long to wait, whether to go on without the client, which replica to choose. It ends
with 500 at an order that is not UTF-8.
"""

from __future__ import annotations

import re

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

#: Environment variable of Serve's proxies, which call the function that it names.
VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
FUNCTION = f"{__name__}:middlewares"
_ORDERS = (
    b"serve-multiplexed-model-id",
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"x-session-id",
)
_REQUEST_ID = re.compile(rb"[!-~]{1,128}")


class ProxyMiddleware:
    """Leaves out headers with orders to Serve, and request ids that are not short and plain."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "headers" in scope:
            scope = {**scope, "headers": [header for header in scope["headers"] if _may_pass(*header)]}
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """Called by Serve's proxy when it starts."""
    return [Middleware(ProxyMiddleware)]


def _may_pass(name: bytes, value: bytes) -> bool:
    plain = name.lower().replace(b"_", b"-")
    if plain == b"x-request-id":
        return _REQUEST_ID.fullmatch(value) is not None
    return plain not in _ORDERS
