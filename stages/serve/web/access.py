"""Who may ask what: the request's host, its origin, its API key and its caller's rate are checked before its body."""

from __future__ import annotations

import ipaddress
import re
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from stages.serve.api_keys import ApiKeys, is_loopback
from stages.serve.config import ServeConfig
from stages.serve.web.errors import RequestError
from stages.serve.web.rates import Caller, Rates

_SAFE_METHODS = ("GET", "HEAD")
#: Answered without a key: the page, which asks for one, and what load balancers ask.
_OPEN_PATHS = ("/", "/health", "/ready")
_OPEN_FOLDER = "/page/"
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_BEARER = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] +(?P<key>[!-~]+) *")
_CALLER = "realword.caller"


class AccessMiddleware:
    """Raises for requests that are refused.

    - A browser that another site has led here by DNS rebinding sends that site's name as the host.
    - Another site's form or script may send a request, though it cannot read the answer. Without keys such ones are
      refused, as in Go's `http.CrossOriginProtection`; with keys the other site has none to send.

    Args:
        app: Answers the others.
        settings: Of the endpoint.
        keys: That requests may have.

    Raises:
        RequestError: 401 no key or an unknown one, 403 from another site, 421 another host, 429 too many requests.
    """

    def __init__(self, app: ASGIApp, settings: ServeConfig, keys: ApiKeys) -> None:
        self._app = app
        self._hosts = _Hosts(settings)
        self._keys = keys
        self._rates = Rates(settings.requests_per_minute, settings.concurrent_requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        self._hosts.check(headers.getlist("host"))
        name = self._check_key(scope, headers) if self._keys else self._check_origin(scope, headers)
        if scope["method"] in _SAFE_METHODS:
            await self._app(scope, receive, send)
            return
        with self._rates.request(name) as caller:
            scope[_CALLER] = caller
            await self._app(scope, receive, send)

    def _check_key(self, scope: Scope, headers: Headers) -> str:
        """The name of the request's key; "" if it needs none."""
        path: str = scope["path"]
        if scope["method"] in _SAFE_METHODS and (path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER)):
            return ""
        given = headers.getlist("authorization")
        match = _BEARER.fullmatch(given[0].encode("latin-1")) if len(given) == 1 else None
        name = None if match is None else self._keys.find(match["key"])
        if name is None:
            reason = "The API key is wrong" if given else "An API key is missing"
            raise RequestError(401, f"{reason}; send one as 'Authorization: Bearer ...'.")
        return name

    @staticmethod
    def _check_origin(scope: Scope, headers: Headers) -> str:
        """The address of the client."""
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        is_ours = site in ("same-origin", "none") if site is not None else _is_same_host(origin, headers["host"])
        if scope["method"] not in _SAFE_METHODS and not is_ours:
            raise RequestError(403, "Pages of other sites may not ask this server.")
        client = scope.get("client")
        return str(client[0]) if client else ""


def count_pictures(scope: Scope, pictures: int) -> None:
    """A request for n pictures counts as n requests; the caller's next ones wait for it."""
    caller: Any = scope.get(_CALLER)
    if isinstance(caller, Caller):
        caller.left -= pictures - 1


def _is_same_host(origin: str | None, host: str) -> bool:
    """Whether a request comes from a page of this server; only browsers send an origin."""
    if origin is None:
        return True
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


class _Hosts:
    """The names by which this server may be asked."""

    def __init__(self, settings: ServeConfig) -> None:
        self._names = {_plain(name) for name in (*settings.allowed_hosts, *_LOOPBACK_NAMES, settings.host)}
        # An address in a URL needs no DNS, and so cannot be rebound.
        self._takes_addresses = not is_loopback(settings.host)

    def check(self, hosts: list[str]) -> None:
        """Check the header Host.

        Raises:
            RequestError: 421.
        """
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None or not self._is_allowed(_plain(match["name"])):
            raise RequestError(421, "This server has another host name; its setting serve.allowed_hosts lists more.")

    def _is_allowed(self, name: str) -> bool:
        parents = (f"*.{name.split('.', depth)[-1]}" for depth in range(1, name.count(".") + 1))
        if not self._names.isdisjoint((name, "*", *parents)):
            return True
        return self._takes_addresses and _is_address(name)


def _plain(name: str) -> str:
    return name.lower().strip("[]").removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
