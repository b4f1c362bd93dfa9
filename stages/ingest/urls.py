"""URLs as browsers read them, by the WHATWG URL standard: metadata and redirects have them in every dialect.

The parser is the one that pydantic brings (the Rust crate `url`). It repairs what browsers repair: spaces and line
breaks, backslashes, too few or too many slashes, percent-encoded and international host names, and numbers for IPv4
addresses, such as 0x7f.1, which become the addresses that they stand for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urljoin

from pydantic import ValidationError
from pydantic_core import Url

_DEFAULT_PORTS = {"http": 80, "https": 443}
_LONGEST_HOST, _LONGEST_LABEL = 253, 63  # of a name in the DNS
_SPACES = "".join(map(chr, range(33)))
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):(?P<rest>.*)", re.IGNORECASE | re.DOTALL)


class UrlError(ValueError):
    """A URL that no browser could open, or that is neither http nor https."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """The parts of an http or https URL; all are ASCII.

    Attributes:
        is_tls: Whether the scheme is https.
        host: A name or an IP address; an IPv6 address has no brackets.
        port: 1 to 65535.
        target: Path and query. A user name, a password and a fragment are not sent.
    """

    is_tls: bool
    host: str
    port: int
    target: str


def parse_url(url: str) -> Address:
    """Split a URL into its parts.

    Raises:
        UrlError: The URL is malformed or damaged, or its scheme is not http or https.
    """
    if "\ufffd" in url:
        raise UrlError("it holds U+FFFD, which stands for characters that were lost")
    parts = _parsed(url)
    if parts.scheme not in _DEFAULT_PORTS:
        raise UrlError(f"the scheme is {parts.scheme[:20]!r}, not http or https")
    host = parts.host or ""
    if host.startswith("["):
        host = host.strip("[]")
    elif not _is_name(host):
        raise UrlError(f"the host {host[:100]!r} has an empty or too long part")
    port = _DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
    if port == 0:
        raise UrlError("the port is 0")
    query = f"?{parts.query}" if parts.query else ""
    return Address(is_tls=parts.scheme == "https", host=host, port=port, target=(parts.path or "/") + query)


def url_error(url: str) -> str | None:
    """Why `parse_url` refuses a URL; None if it does not."""
    try:
        parse_url(url)
    except UrlError as error:
        return str(error)
    return None


def redirected(url: str, location: str) -> str:
    """The URL that a response's header `Location` leads to.

    Args:
        url: Where the response came from.
        location: The header as `http.client` gives it, decoded as Latin-1. Bytes outside ASCII are percent-encoded, as
            browsers do, whatever their encoding is.

    Raises:
        UrlError: There is no such URL.
    """
    base = _parsed(url)
    encoded = "".join(c if c.isascii() else f"%{ord(c):02X}" for c in location if c not in "\t\r\n").strip(_SPACES)
    path, *query = re.split(r"(?=[?#])", encoded, maxsplit=1)
    target = path.replace("\\", "/") + "".join(query)
    if absolute := _SCHEME.match(target):
        if absolute[1].lower() != base.scheme or absolute["rest"].startswith("//"):
            return target
        target = absolute["rest"]  # "http:picture.jpg" is relative
    if target.startswith("//"):
        return f"{base.scheme}:{target}"
    return urljoin(str(base), target)


def _parsed(url: str) -> Url:
    try:
        return Url(url)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        raise UrlError(found.get("ctx", {}).get("error", found["msg"])) from None


def _is_name(host: str) -> bool:
    """Whether a host has the lengths that the DNS allows; a dot at its end does not count."""
    name = host.removesuffix(".")
    return len(name) <= _LONGEST_HOST and all(0 < len(label) <= _LONGEST_LABEL for label in name.split("."))
