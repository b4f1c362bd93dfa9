"""One picture from a web that nobody vouches for.

Covers: only http and https; the address that was checked is the one that is connected to, at every redirect (so that a
name that resolves differently a moment later wins nothing); limits on the bytes and on the seconds of a download,
also on one that drips; opt-outs by X-Robots-Tag; bodies that do not start like a picture are not read on.
Does not cover: the time that the system's resolver takes for a name (its own limit, some 10 to 30 seconds), and
proxies: the environment's are not used, for then the proxy would choose the address.

img2dataset asks for pictures with `urllib.request.urlopen`, and Python lets a process say what does the work behind
it: `urllib.request.install_opener`. `PictureOpener` is made for that. It needs no fork of img2dataset and none of its
names replaced: only that it goes on using urllib, which a test of the stage would notice.
"""

from __future__ import annotations

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
from dataclasses import dataclass
from email.message import Message
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from stages.data.pictures import SIGNATURE_BYTES, picture_format
from stages.ingest.config import IngestConfig
from stages.ingest.outcomes import TRANSIENT, reason_of_status

ROBOT = "realword"
USER_AGENT = f"Mozilla/5.0 (compatible; {ROBOT}; collects captioned pictures; obeys X-Robots-Tag)"
MAX_REDIRECTS = 5
#: Directives of X-Robots-Tag that ask not to be in a data set, and those whose colon is not that of a robot's name.
OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_FIRST_PAUSE_SECONDS = 0.5  # before a second attempt; doubled each time
_CHUNK_BYTES = 1 << 16
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_AZURE_METADATA = ipaddress.ip_address("168.63.129.16")  # the one metadata service at a public address


class FetchError(Exception):
    """Why there is no picture: one of the reasons of `stages.ingest.stage.outcomes`, and what exactly was seen."""

    def __init__(self, reason: str, detail: object) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a server said at last: the body, the headers, and the address after all redirects."""

    body: bytes
    headers: Message
    url: str


class PictureOpener(urllib.request.OpenerDirector):
    """For `urllib.request.install_opener`: urlopen then gives pictures, within limits, or raises `FetchError`."""

    def __init__(self, settings: IngestConfig) -> None:
        super().__init__()
        self.settings = settings

    def open(self, fullurl: Any, data: Any = None, timeout: float | None = None) -> Any:
        """The answer as a file with headers. Time limits are those of the settings."""
        url = fullurl.full_url if isinstance(fullurl, urllib.request.Request) else fullurl
        try:
            answer = fetch(url, self.settings)
        except FetchError:
            raise
        except Exception as error:  # a row must have a reason, whatever a server comes up with
            raise FetchError("error", repr(error)) from error
        return urllib.response.addinfourl(io.BytesIO(answer.body), answer.headers, answer.url, http.client.OK)


def fetch(url: str, settings: IngestConfig) -> Answer:
    """Get the picture at `url`; what may be over in a moment is tried again after a pause.

    Raises:
        FetchError: There is none to be had.
    """
    deadline = time.monotonic() + settings.total_seconds
    for attempt in itertools.count():
        pause = _FIRST_PAUSE_SECONDS * 2**attempt
        try:
            return _follow(url, settings, deadline)
        except FetchError as error:
            is_last = attempt >= settings.retries or time.monotonic() + pause >= deadline
            if is_last or error.reason not in TRANSIENT:
                raise
        time.sleep(pause)
    raise AssertionError("unreachable")


def _follow(url: str, settings: IngestConfig, deadline: float) -> Answer:
    """The answer at the end of the redirects."""
    start = url
    for _ in range(MAX_REDIRECTS + 1):
        answer = _ask(url, settings, deadline)
        if isinstance(answer, Answer):
            return answer
        url = answer
    raise FetchError("redirects", f"more than {MAX_REDIRECTS} from {start[:100]}")


def _ask(url: str, settings: IngestConfig, deadline: float) -> Answer | str:
    """The answer of one server, or the address that it sends us to."""
    address = parse_url(url)
    connection = _Connection(address, settings, deadline)
    try:
        connection.request("GET", address.target, headers={"User-Agent": USER_AGENT, "Accept": "image/*"})
        response = connection.getresponse()
        if response.status in _REDIRECTS and (location := response.headers.get("Location")):
            return urljoin(url, location.encode("latin-1", "replace").decode("utf-8", "replace"))
        if response.status != http.client.OK:
            raise FetchError(reason_of_status(response.status), f"HTTP {response.status}")
        if opted_out(response.headers):
            raise FetchError("opted_out", ", ".join(response.headers.get_all("X-Robots-Tag", [])))
        return Answer(body=_read(response, settings.max_bytes), headers=response.headers, url=url)
    except TimeoutError as error:
        raise FetchError("timeout", error) from error
    except ssl.SSLError as error:
        raise FetchError("tls", error) from error
    except ConnectionResetError as error:  # http.client.RemoteDisconnected is one
        raise FetchError("reset", error) from error
    except OSError as error:
        raise FetchError("connection", error) from error
    except http.client.IncompleteRead as error:
        raise FetchError("incomplete", error) from error
    except (http.client.HTTPException, ValueError) as error:  # ValueError: chunk sizes that are no numbers
        raise FetchError("protocol", repr(error)) from error
    finally:
        connection.close()


def _read(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    """The whole body of a picture."""
    if response.length is not None and response.length > max_bytes:
        raise FetchError("too_many_bytes", f"{response.length} > {max_bytes}")
    body = bytearray()
    while chunk := response.read1(_CHUNK_BYTES):
        is_start = len(body) < SIGNATURE_BYTES
        body += chunk
        if len(body) > max_bytes:
            raise FetchError("too_many_bytes", f"> {max_bytes}")
        if is_start and len(body) >= SIGNATURE_BYTES:
            _refuse_other_types(body, response.headers)
    if response.length:
        raise FetchError("incomplete", f"{response.length} of {len(body) + response.length} bytes are missing")
    _refuse_other_types(body, response.headers)
    return bytes(body)


def _refuse_other_types(body: bytes | bytearray, headers: Message) -> None:
    if picture_format(body) is None:
        raise FetchError("wrong_type", f"{headers.get_content_type()}, starts with {bytes(body[:8])!r}")


def opted_out(headers: Message) -> bool:
    """Whether X-Robots-Tag asks all robots, or this one, to leave the picture alone.

    A header is a list of directives; `name: directive` makes it and what follows hold for the robot of that name only.
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


@dataclass(frozen=True, kw_only=True)
class Address:
    """An http or https URL, taken apart; `target` is its path and query in ASCII."""

    is_tls: bool
    host: str
    port: int
    target: str


def parse_url(url: str) -> Address:
    """Take a URL apart; characters outside ASCII are escaped as browsers do.

    Raises:
        FetchError: It is none of http or https.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except ValueError as error:  # UnicodeError, a host name that is none, is one too
        raise FetchError("bad_url", error) from error
    if parts.scheme not in ("http", "https"):
        raise FetchError("bad_url", f"the scheme is {parts.scheme[:20]!r}, not http or https")
    if not host or any(ord(letter) <= 32 or ord(letter) == 127 for letter in host):
        raise FetchError("bad_url", f"the host is {host[:100]!r}")
    path = quote(parts.path or "/", safe="/%:=&~+!$,;'@()*[]|")
    query = "?" + quote(parts.query, safe="/%:=&~+!$,;'@()*[]|?") if parts.query else ""
    is_tls = parts.scheme == "https"
    return Address(is_tls=is_tls, host=host, port=port or (443 if is_tls else 80), target=path + query)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet: not loopback, private, link-local, reserved or a metadata
    service, nor an IPv6 form of such an IPv4 address.
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


def connect(host: str, port: int, settings: IngestConfig, deadline: float) -> BoundedSocket:
    """Resolve the name, check every address that it has, and connect to the first that answers."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise FetchError("dns", f"{error.strerror}: {host}") from error
    for *_, place in found:
        if not settings.allow_private_addresses and not is_public(str(place[0])):
            raise FetchError("private_address", f"{host} is {place[0]}")
    problem: OSError | None = None
    for family, kind, protocol, _, place in found:
        bounded = BoundedSocket(family, kind, protocol)
        try:
            bounded.bound(settings.timeout_seconds, deadline)
            bounded.connect(place)
            return bounded
        except OSError as error:
            bounded.close()
            problem = error
    raise problem or OSError(f"{host} has no address")


class _Bounded:
    """A socket that waits no longer than `patience` seconds for its peer, nor beyond `deadline`.

    Python's time limits are for one operation each: a server that drips could hold a plain socket for ever.
    """

    patience: float
    deadline: float

    def bound(self: Any, patience: float, deadline: float) -> None:
        """Set the limits for what is next."""
        self.patience, self.deadline = patience, deadline
        self.settimeout(patience)
        self.heed_deadline()

    def heed_deadline(self: Any) -> None:
        """Before each operation: wait no longer than until the deadline."""
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the time for this download is over")
        if remaining < self.patience:  # settimeout is a system call
            self.settimeout(remaining)


class BoundedSocket(_Bounded, socket.socket):
    """Over TCP."""

    def recv_into(self, *arguments: Any) -> int:
        """All of http.client's reading comes through here."""
        self.heed_deadline()
        return super().recv_into(*arguments)


class _BoundedTLSSocket(_Bounded, ssl.SSLSocket):
    """Over TLS."""

    def recv_into(self, *arguments: Any) -> int:
        self.heed_deadline()
        return super().recv_into(*arguments)


@functools.cache  # reading the authorities takes longer than many a download
def _tls_context() -> ssl.SSLContext:
    """Certificates are verified; sockets are bounded."""
    context = ssl.create_default_context()
    context.sslsocket_class = _BoundedTLSSocket
    return context


class _Connection(http.client.HTTPConnection):
    """Connects to checked addresses only."""

    def __init__(self, address: Address, settings: IngestConfig, deadline: float) -> None:
        super().__init__(address.host, address.port)
        self.default_port = 443 if address.is_tls else 80
        self._address, self._settings, self._deadline = address, settings, deadline

    def connect(self) -> None:
        """See `HTTPConnection.connect`."""
        self.sock = connect(self._address.host, self._address.port, self._settings, self._deadline)
        if self._address.is_tls:
            tls = _tls_context().wrap_socket(self.sock, server_hostname=self._address.host)
            assert isinstance(tls, _BoundedTLSSocket)
            tls.bound(self._settings.timeout_seconds, self._deadline)
            self.sock = tls
