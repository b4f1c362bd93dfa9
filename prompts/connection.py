"""The connection to an OpenAI-compatible server: proxies, time limits, and errors in answers that say 200."""

from __future__ import annotations

import functools
import ipaddress
import json
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import openai

from prompts.endpoint import Endpoint
from prompts.errors import AnswerTimeoutError, PromptError, error_in, one_line, status_of


def connect(endpoint: Endpoint) -> openai.OpenAI:
    """The client of an endpoint.

    Raises:
        PromptError: The environment names a proxy that cannot be used.
    """
    base_url, _, query = endpoint.base_url.partition("?")  # the client would append its path to the query
    return openai.OpenAI(
        base_url=base_url,
        default_query=dict(parse_qsl(query)),
        api_key=endpoint.api_key or "none",
        timeout=endpoint.timeout_seconds,
        max_retries=0,  # each try is counted, and paid for, by itself
        http_client=_http_client(base_url, endpoint.timeout_seconds),
    )


def _http_client(base_url: str, timeout_seconds: float) -> Any:
    hooks: dict[str, list[Callable[..., Any]]] = {
        "response": [functools.partial(_read_in_time, seconds=timeout_seconds), _give_error_its_status]
    }
    if _is_loopback(urlsplit(base_url).hostname or ""):
        # No proxy can reach this machine, and an unusable one must not be in the way. Without the environment HTTPX
        # would not read SSL_CERT_FILE either, as this context does.
        return openai.DefaultHttpxClient(event_hooks=hooks, trust_env=False, verify=ssl.create_default_context())
    try:
        return openai.DefaultHttpxClient(event_hooks=hooks)
    except Exception as error:  # of several kinds and packages, such as ImportError for a SOCKS proxy
        raise PromptError(
            f"the proxy settings of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY) cannot be used for "
            f"prompts.endpoint: {one_line(str(error))}"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _read_in_time(response: Any, seconds: float) -> None:
    """Read the body. HTTPX limits the time of each piece only: a server may send one a minute for ever."""
    deadline = time.monotonic() + seconds
    pieces = response.iter_raw

    def pieces_in_time(chunk_size: int | None = None) -> Iterator[bytes]:
        for piece in pieces(chunk_size):
            if time.monotonic() > deadline:
                raise openai.APITimeoutError(response.request) from AnswerTimeoutError()
            yield piece

    response.iter_raw = pieces_in_time
    response.read()


def _give_error_its_status(response: Any) -> None:
    """Set the status of an answer that says 200 and holds an error, so that the `openai` client waits and retries."""
    if response.is_success:
        error = error_in(json_of(response)) if response.content.strip() else "the answer is empty"
        if error is not None:
            response.extensions["sent_status"] = response.status_code
            response.status_code = status_of(error)


def json_of(response: Any) -> Any:
    """The body of an HTTP answer; None if it is not JSON."""
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return None
