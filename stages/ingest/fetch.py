"""Downloads of single pictures from untrusted servers.

Covered: only http and https are used. The address that was checked is the address that is connected to, also after
each redirect, so that DNS rebinding gains nothing. The bytes and the total seconds of a download are limited, also for
a server that sends a byte at a time; of a packed body the unpacked bytes count. X-Robots-Tag is respected. A body that
does not start like a picture is not read further.

Not covered: the time that the system's resolver takes for a name, which has its own limit of 10 to 30 seconds. The
environment's proxies are not used, because a proxy would choose the address itself.

img2dataset downloads with `urllib.request.urlopen`, whose work a process can replace by `install_opener`.
`PictureOpener` is such a replacement. img2dataset needs no fork and no patch for it, as long as it uses urllib; a test
of the stage would fail if it no longer did.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import ipaddress
import itertools
import socket
import ssl
import time
import urllib.request
import urllib.response
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any

from model.pictures.decoding import SIGNATURE_BYTES, picture_format
from stages.ingest.config import IngestConfig
from stages.ingest.content_encoding import TruncatedError, UnpackError, unpacked
from stages.ingest.outcomes import TRANSIENT, reason_of_status
from stages.ingest.urls import Address, UrlError, parse_url, redirected

ROBOT = "realword"
USER_AGENT = f"Mozilla/5.0 (compatible; {ROBOT}; collects captioned pictures; respects X-Robots-Tag)"
MAX_REDIRECTS = 5
#: Directives of X-Robots-Tag that forbid the use in a data set.
OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
#: Directives that have a value after a colon; before any other colon stands the name of a robot.
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_FIRST_PAUSE_SECONDS = 0.5  # before a second attempt; doubled each time
_CHUNK_BYTES = 1 << 16
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_AZURE_METADATA = ipaddress.ip_address("168.63.129.16")  # the one metadata service at a public address


class FetchError(Exception):
    """A failed download: one of the reasons of `stages.ingest.outcomes`, and the details."""

    def __init__(self, reason: str, detail: object) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Response:
    """The final response of a server; `url` is the address after all redirects."""

    body: bytes
    headers: Message
    url: str


class PictureOpener(urllib.request.OpenerDirector):
    """For `urllib.request.install_opener`: urlopen then returns pictures within the limits, or raises `FetchError`.

    Args:
        settings: The limits.
        moved: URLs that start with a key are read where its value says.
    """

    def __init__(self, settings: IngestConfig, moved: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.moved = dict(moved or {})

    def open(self, fullurl: Any, data: Any = None, timeout: float | None = None) -> Any:
        """The response as a file with headers. The time limits are those of the settings."""
        url = fullurl.full_url if isinstance(fullurl, urllib.request.Request) else fullurl
        try:
            response = fetch(self._place_of(url), self.settings)
        except FetchError:
            raise
        except Exception as error:  # a row must have a reason, whatever a server sends
            raise FetchError("error", repr(error)) from error
        return urllib.response.addinfourl(io.BytesIO(response.body), response.headers, response.url, http.client.OK)

    def _place_of(self, url: str) -> str:
        for start, place in self.moved.items():
            if url.startswith(start):
                return place + url.removeprefix(start)
        return url


def fetch(url: str, settings: IngestConfig) -> Response:
    """Download the picture at `url`. After a transient error it is tried again.

    Raises:
        FetchError: The picture could not be downloaded.
    """
    deadline = time.monotonic() + settings.total_seconds
    for attempt in itertools.count():
        pause = _FIRST_PAUSE_SECONDS * 2**attempt
        try:
            return _follow_redirects(url, settings, deadline)
        except FetchError as error:
            is_last = attempt >= settings.retries or time.monotonic() + pause >= deadline
            if is_last or error.reason not in TRANSIENT:
                raise
        time.sleep(pause)
    raise AssertionError("unreachable")


def _follow_redirects(url: str, settings: IngestConfig, deadline: float) -> Response:
    start = url
    for _ in range(MAX_REDIRECTS + 1):
        response = _request(url, settings, deadline)
        if isinstance(response, Response):
            return response
        url = response
    raise FetchError("redirects", f"more than {MAX_REDIRECTS} from {start[:100]}")


def _request(url: str, settings: IngestConfig, deadline: float) -> Response | str:
    """Send one request. Returns the response, or the URL that it redirects to."""
    with _network_errors(), contextlib.closing(_Connection(parse_url(url), settings, deadline)) as connection:
        connection.request("GET", connection.address.target, headers={"User-Agent": USER_AGENT, "Accept": "image/*"})
        response = connection.getresponse()
        if response.status in _REDIRECTS and (location := response.headers.get("Location")):
            return redirected(url, location)
        if response.status != http.client.OK:
            raise FetchError(reason_of_status(response.status), f"HTTP {response.status}")
        if opted_out(response.headers):
            raise FetchError("opted_out", ", ".join(response.headers.get_all("X-Robots-Tag", [])))
        return Response(body=_read(response, settings.max_bytes), headers=response.headers, url=url)


@contextlib.contextmanager
def _network_errors() -> Iterator[None]:
    """Turn the errors of URLs, sockets, TLS and HTTP into FetchErrors."""
    try:
        yield
    except UrlError as error:
        raise FetchError("bad_url", error) from error
    except TimeoutError as error:
        raise FetchError("timeout", error) from error
    except ssl.SSLError as error:
        raise FetchError("tls", error) from error
    except ConnectionResetError as error:  # http.client.RemoteDisconnected is one
        raise FetchError("reset", error) from error
    except OSError as error:
        raise FetchError("connection", error) from error
    except (http.client.IncompleteRead, TruncatedError) as error:
        raise FetchError("incomplete", error) from error
    except UnpackError as error:
        raise FetchError("protocol", f"the body is not what its Content-Encoding says ({error})") from error
    except (http.client.HTTPException, ValueError) as error:  # ValueError: chunk sizes that are no numbers
        raise FetchError("protocol", repr(error)) from error


def _read(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    """Read and unpack the whole body, and stop early when it is not a picture."""
    codings = ",".join(response.headers.get_all("Content-Encoding", []))
    # A picture is compressed already: packed once more, it grows a little.
    limit = max_bytes + max_bytes // 100 + 1024 if codings else max_bytes
    body = bytearray()
    for piece in unpacked(_chunks(response, limit), codings):
        is_start = len(body) < SIGNATURE_BYTES
        body += piece
        if len(body) > max_bytes:
            raise FetchError("too_many_bytes", f"> {max_bytes}")
        if is_start and len(body) >= SIGNATURE_BYTES:
            _refuse_other_types(body, response.headers)
    _refuse_other_types(body, response.headers)
    return bytes(body)


def _chunks(response: http.client.HTTPResponse, limit: int) -> Iterator[bytes]:
    """The body as it is sent."""
    if response.length is not None and response.length > limit:
        raise FetchError("too_many_bytes", f"{response.length} > {limit}")
    size = 0
    while chunk := response.read1(_CHUNK_BYTES):
        size += len(chunk)
        if size > limit:
            raise FetchError("too_many_bytes", f"> {limit}")
        yield chunk
    if response.length:
        raise FetchError("incomplete", f"{response.length} of {size + response.length} bytes are missing")


def _refuse_other_types(body: bytes | bytearray, headers: Message) -> None:
    if picture_format(body) is None:
        packed = f" with Content-Encoding {coding}" if (coding := headers.get("Content-Encoding")) else ""
        raise FetchError("wrong_type", f"{headers.get_content_type()}{packed}, starts with {bytes(body[:8])!r}")


def opted_out(headers: Message) -> bool:
    """Whether X-Robots-Tag forbids all robots, or this one, to use the picture.

    A header is a list of directives. `name: directive` restricts this directive and those after it to the robot `name`.
    """
    for value in headers.get_all("X-Robots-Tag", []):
        robot = None
        for part in str(value).lower().split(","):
            name, colon, directive = (text.strip() for text in part.partition(":"))
            if colon and name not in _VALUED:
                robot = name
            if robot in (None, ROBOT) and (directive if colon else name) in OPT_OUTS:
                return True
    return False


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet.

    Loopback, private, link-local and reserved addresses and metadata services do not, nor do their IPv6 forms.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner:
            return is_public(str(inner))
        if ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and ip != _AZURE_METADATA


def connect(host: str, port: int, settings: IngestConfig, deadline: float) -> DeadlineSocket:
    """Resolve the host, check all its addresses, and connect to the first that accepts."""
    try:
        # Not every resolver knows "localhost." with a dot.
        found = socket.getaddrinfo(host.removesuffix("."), port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise FetchError("dns", f"{error.strerror}: {host}") from error
    for *_, address in found:
        if not settings.allow_private_addresses and not is_public(str(address[0])):
            raise FetchError("private_address", f"{host} is {address[0]}")
    last_error: OSError | None = None
    for family, kind, protocol, _, address in found:
        connected = DeadlineSocket(family, kind, protocol)
        try:
            connected.set_limits(settings.timeout_seconds, deadline)
            connected.connect(address)
            return connected
        except OSError as error:
            connected.close()
            last_error = error
    raise last_error or OSError(f"{host} has no address")


class _DeadlineMixin:
    """A socket with a time limit for each operation, `timeout_seconds`, and one for all together, `deadline`.

    Python only has the first: a server that sends a byte at a time could hold a plain socket for ever.
    """

    timeout_seconds: float
    deadline: float

    def set_limits(self: Any, timeout_seconds: float, deadline: float) -> None:
        """Set both limits for the next operations; `deadline` is a value of `time.monotonic`."""
        self.timeout_seconds, self.deadline = timeout_seconds, deadline
        self.settimeout(timeout_seconds)
        self.apply_deadline()

    def apply_deadline(self: Any) -> None:
        """Shorten the next operation's time limit to what is left; raises TimeoutError when nothing is left."""
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the time for this download is over")
        if remaining < self.timeout_seconds:  # settimeout is a system call
            self.settimeout(remaining)


class DeadlineSocket(_DeadlineMixin, socket.socket):
    """A TCP socket with a deadline."""

    def recv_into(self, *arguments: Any) -> int:
        """As `socket.recv_into`, which http.client uses for all its reading."""
        self.apply_deadline()
        return super().recv_into(*arguments)


class _DeadlineTLSSocket(_DeadlineMixin, ssl.SSLSocket):
    def recv_into(self, *arguments: Any) -> int:
        self.apply_deadline()
        return super().recv_into(*arguments)


@functools.cache  # reading the certificate authorities takes longer than a small download
def _tls_context() -> ssl.SSLContext:
    """Certificates are verified, and the sockets have deadlines."""
    context = ssl.create_default_context()
    context.sslsocket_class = _DeadlineTLSSocket
    return context


class _Connection(http.client.HTTPConnection):
    """An HTTP or HTTPS connection, to checked addresses only."""

    def __init__(self, address: Address, settings: IngestConfig, deadline: float) -> None:
        super().__init__(address.host, address.port)
        self.default_port = 443 if address.is_tls else 80
        self.address, self._settings, self._deadline = address, settings, deadline

    def connect(self) -> None:
        """See `HTTPConnection.connect`."""
        self.sock = connect(self.address.host, self.address.port, self._settings, self._deadline)
        if self.address.is_tls:
            tls = _tls_context().wrap_socket(self.sock, server_hostname=self.address.host.removesuffix("."))
            assert isinstance(tls, _DeadlineTLSSocket)
            tls.set_limits(self._settings.timeout_seconds, self._deadline)
            self.sock = tls
