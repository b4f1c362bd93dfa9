"""Headers by which clients could give orders to Ray Serve's proxy, or make it fail."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stages.serve import proxy


def passed(*headers: tuple[bytes, bytes], kind: str = "http") -> list[tuple[bytes, bytes]]:
    found: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        found.append(scope)

    scope = {"type": kind, "headers": list(headers)}
    never: Any = None  # neither is called
    asyncio.run(proxy.ProxyMiddleware(application)(scope, never, never))
    return found[0]["headers"]


@pytest.mark.parametrize(
    "header",
    [
        *((b"x-request-id", value) for value in (b"\xff\xfe", b"", b"a b", b"a" * 129, b"a\tb")),
        (b"X-Request-ID", b"\xff"),
        (b"serve_multiplexed_model_id", b"a"),
        (b"Serve-Multiplexed-Model-Id", b"\xff"),
        (b"x-session-id", b"a"),
        (b"x_session_id", b"a"),
        (b"x-request-timeout-seconds", b"0"),
        (b"x-request-disconnect-disabled", b"?1"),
    ],
)
def test_orders_are_left_out(header: tuple[bytes, bytes]) -> None:
    assert passed((b"host", b"localhost"), header) == [(b"host", b"localhost")]


@pytest.mark.parametrize(
    "header",
    [(b"x-request-id", b"8f14e45f-ceea"), (b"authorization", b"Bearer a"), (b"x-mine", b"\xff"), (b"cookie", b"a")],
)
def test_other_headers_pass(header: tuple[bytes, bytes]) -> None:
    assert passed(header) == passed(header, kind="websocket") == [header]


def test_serve_finds_the_function() -> None:
    from ray.serve._private.http_util import validate_http_proxy_callback_return
    from ray.serve._private.utils import call_function_from_import_path

    (middleware,) = validate_http_proxy_callback_return(call_function_from_import_path(proxy.FUNCTION))
    assert middleware.cls is proxy.ProxyMiddleware


def test_the_orders_are_serves() -> None:
    from ray.serve._private import constants

    assert proxy.VARIABLE in dir(constants)
    for name in (
        constants.SERVE_MULTIPLEXED_MODEL_ID,
        constants.SERVE_SESSION_ID,
        constants.SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER,
        constants.SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER,
    ):
        assert not passed((name.encode(), b"1"))
