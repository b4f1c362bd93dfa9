"""Every error of the server, in the body that OpenAI's clients show: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stages.serve.painting import (
    NoPainterError,
    PaintersBusyError,
    PaintingFailedError,
    PaintingTimeoutError,
    PictureRefusedError,
)

_RETRY_AFTER_SECONDS = 2
#: OpenAI's `type` and `code` by status; other statuses are errors of the request without a code.
_KINDS: dict[int, tuple[str, str]] = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "cross_site"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    408: ("invalid_request_error", "request_timeout"),
    413: ("invalid_request_error", "request_too_large"),
    415: ("invalid_request_error", "unsupported_media_type"),
    421: ("invalid_request_error", "wrong_host"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    500: ("server_error", "internal_error"),
    503: ("server_error", "not_ready"),
    504: ("server_error", "timeout"),
}
_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
#: Clients send these again by themselves unless they are asked not to, and would have the same work done again.
_NOT_AGAIN = (408, 500, 504)


class RequestError(Exception):
    """A request cannot be answered with a picture.

    Attributes:
        status: Of HTTP.
        message: One sentence for the user.
        param: The field that is wrong.
        code: For programs; None: that of the status.
        retry_after: Seconds after which it may be sent again, of 429 and 503.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        *,
        retry_after: int = _RETRY_AFTER_SECONDS,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after


def error_body(error: RequestError) -> dict[str, Any]:
    """The body of an error."""
    kind, code = _KINDS.get(error.status, ("invalid_request_error", None))
    fields = {"message": error.message, "type": kind, "param": error.param, "code": error.code or code}
    return {"error": fields}


def error_schema(description: str) -> dict[str, Any]:
    """An error as a response in OpenAPI's schema."""
    return {"description": description, "content": {"application/json": {"schema": _SCHEMA}}}


def error_response(error: RequestError, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer with an error."""
    added = dict(headers or {})
    if error.status in (429, 503):
        added["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        added["WWW-Authenticate"] = "Bearer"
    if error.status in _NOT_AGAIN:
        added["x-should-retry"] = "false"
    return JSONResponse(error_body(error), error.status, added)


@contextmanager
def painting_errors(seconds: float) -> Iterator[None]:
    """Answer for what can go wrong with the painters.

    Args:
        seconds: The deadline of requests, for the message.

    Raises:
        RequestError: 400 a picture may not be shown, 429 too many requests, 500 painting failed, 503 no painter, 504
            too slow.
    """
    try:
        yield
    except PaintersBusyError as error:
        seconds = max(1, math.ceil(error.seconds))
        message = f"All painters are busy; try again in {seconds} s."
        raise RequestError(429, message, retry_after=seconds) from error
    except NoPainterError as error:
        raise RequestError(503, "No painter is ready; try again in a moment.") from error
    except PictureRefusedError as error:
        raise RequestError(400, f"{str(error).capitalize()}", code=error.code) from error
    except PaintingTimeoutError as error:
        raise RequestError(504, f"Painting takes more than {seconds:g} s; ask for fewer steps or pictures.") from error
    except PaintingFailedError as error:
        logging.getLogger(__name__).error("Painting failed: %s", error)
        raise RequestError(500, "Painting failed; the server's log says why.") from error


def add_error_handlers(app: FastAPI) -> None:
    """Let the application answer all errors in this way, also those that no route has raised."""

    @app.exception_handler(RequestError)
    async def _request_error(_: Request, error: RequestError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def _query_error(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return error_response(RequestError(422, f"{first['msg']}.", str(first["loc"][-1])))

    @app.exception_handler(HTTPException)
    async def _no_such_address(request: Request, error: HTTPException) -> JSONResponse:
        where = f"{request.method} {request.url.path}"
        message = (
            f"There is no {where}; GET /openapi.json lists the addresses."
            if error.status_code in (404, 405)
            else (f"{where}: {error.detail}")
        )
        return error_response(RequestError(error.status_code, message), dict(error.headers or {}))


class ErrorsMiddleware:
    """Answers for errors that no handler of the application has seen: those of other middleware, and of the code."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False

        async def send_and_note(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except ClientDisconnect:  # nobody waits for an answer
            return
        except Exception as error:
            if has_started or scope["type"] != "http":
                raise
            if not isinstance(error, RequestError):
                logging.getLogger(__name__).exception("The server failed.")
                error = RequestError(500, "The server failed; its log says why.")
            await error_response(error)(scope, receive, send)
