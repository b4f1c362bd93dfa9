"""Single downloads from hostile servers: addresses, limits, redirects, opt-outs. Real sockets, a real server."""

from __future__ import annotations

import dataclasses
import datetime
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from stages.ingest import fetch as fetching
from stages.ingest.config import IngestConfig
from stages.ingest.fetch import ROBOT, FetchError, PictureOpener, fetch, is_public, opted_out
from tests.support.hostile_web import BEHAVIOURS, LIMITS, ROWS, HostileServer, hostile_server

SETTINGS = dataclasses.replace(IngestConfig(), allow_private_addresses=True, **LIMITS)


@pytest.fixture(scope="module")
def web() -> Iterator[HostileServer]:
    with hostile_server() as server:
        yield server


def reason_for(url: str, settings: IngestConfig = SETTINGS) -> str:
    try:
        fetch(url, settings)
    except FetchError as error:
        return error.reason
    return ""


@pytest.mark.parametrize("kind", BEHAVIOURS)
def test_every_behaviour_of_a_server_ends_in_time_with_a_picture_or_a_reason(kind: str, web: HostileServer) -> None:
    began = time.monotonic()
    assert reason_for(f"{web.base}/{kind}/1") == BEHAVIOURS[kind][0]
    assert time.monotonic() - began < SETTINGS.total_seconds + 1


@pytest.mark.parametrize("kind", [kind for kind in ROWS if kind.endswith(("url", "host", "address", "label", "port"))])
def test_malformed_urls(kind: str, web: HostileServer) -> None:
    url = ROWS[kind][1](web.base)
    if url and ROWS[kind][0] in ("bad_url", "dns"):
        assert reason_for(url.replace("{number}", "1")) == ROWS[kind][0]


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.100.100.200", "169.254.169.254",
     "168.63.129.16", "192.0.2.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0",
     "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::a00:1",
     "2002:7f00:1::", "2002:a00:1::1", "2001:db8::1", "fec0::1"],
)  # fmt: skip
def test_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "64:ff9b::808:808"])
def test_addresses_of_the_public_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "localhost.", "2130706433", "0x7f.1", "127.1", "017700000001", "[::1]", "0",
     "a@127.0.0.1", "[::ffff:127.0.0.1]", "%31%32%37.0.0.1", "loc\u00adalhost", "127\u30020.0.1", "\uff4cocalhost"],
)  # fmt: skip
def test_this_machine_is_not_contacted_under_any_name(host: str, web: HostileServer) -> None:
    closed = dataclasses.replace(SETTINGS, allow_private_addresses=False)
    before = web.asked.total()
    url = f"http://{host}:{web.server_address[1]}/busy_once/private"
    assert reason_for(url, closed) == "private_address"
    assert web.asked.total() == before


def test_a_redirect_is_checked_like_the_first_address(web: HostileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.1 stands for the public internet, 127.0.0.2 for a private network."""
    monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.1")
    closed = dataclasses.replace(SETTINGS, allow_private_addresses=False)
    private = web.base.replace("127.0.0.1", "127.0.0.2")
    assert reason_for(f"{web.base}/moved/1", closed) == ""
    odd = (private.removeprefix("http:"), private.replace("/", "\\"), private.replace("127.0.0.2", "0x7f.2"))
    for base in (private, *odd):
        assert reason_for(f"{web.base}/moved_to?{base}/jpeg/1", closed) == "private_address"
    assert reason_for(f"{web.base}/moved_to?{web.base}/jpeg/1", closed) == ""


def test_the_address_that_was_checked_is_the_one_that_is_connected_to(
    web: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: a name resolves to a public address first and to this machine later."""
    answers = iter(["127.0.0.1", "127.0.0.3", "127.0.0.3"])
    real = socket.getaddrinfo

    def rebinding(host: str, *arguments: Any, **options: Any) -> Any:
        return real(next(answers) if host == "rebind.example" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.1")
    closed = dataclasses.replace(SETTINGS, allow_private_addresses=False)
    url = f"http://rebind.example:{web.server_address[1]}/jpeg/1"
    assert fetch(url, closed).body == web.bodies["jpeg"][1]
    assert reason_for(url, closed) == "private_address"


def test_a_picture_is_downloaded_whole_with_our_user_agent(web: HostileServer) -> None:
    response = fetch(f"{web.base}/agent/1", SETTINGS)
    assert response.body == web.bodies["jpeg"][1]
    assert ROBOT in response.headers["X-Asked-By"]


def test_urlopen_with_our_opener_raises_errors_with_reasons(web: HostileServer) -> None:
    urllib.request.install_opener(PictureOpener(SETTINGS))
    try:
        with urllib.request.urlopen(f"{web.base}/moved/1", timeout=99) as response:
            assert response.read() == web.bodies["jpeg"][1]
        with pytest.raises(FetchError, match="not_found: HTTP 404"):
            urllib.request.urlopen(urllib.request.Request(f"{web.base}/not_found/1"))
    finally:
        urllib.request.install_opener(urllib.request.build_opener())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("noai", True),
        ("NOINDEX", True),
        ("none", True),
        ("nosnippet, noimageai", True),
        ("realword: noai", True),
        ("RealWord: nosnippet, noindex", True),
        ("max-image-preview: large, noai", True),
        ("unavailable_after: 25 Jun 2010 15:00:00 PST, noindex", True),
        ("otherbot: noai", False),
        ("otherbot: nosnippet, noindex", False),
        ("nosnippet, noarchive", False),
        ("all", False),
        ("", False),
        (":,:,,", False),
    ],
)
def test_opt_outs(value: str, expected: bool) -> None:
    headers = Message()
    assert not opted_out(headers)
    headers["X-Robots-Tag"] = "all"
    headers["X-Robots-Tag"] = value
    assert opted_out(headers) is expected


@pytest.fixture
def tls_web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileServer]:
    """The hostile server over TLS, with a certificate for localhost that this process trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "localhost.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pem.write_bytes(certificate.public_bytes(Encoding.PEM) + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    fetching._tls_context.cache_clear()
    with hostile_server(context) as server:
        yield server
    fetching._tls_context.cache_clear()


def test_tls_is_verified_and_has_the_same_deadline_as_tcp(tls_web: HostileServer) -> None:
    base = f"https://localhost:{tls_web.server_address[1]}"
    assert fetch(f"{base}/jpeg/1", SETTINGS).body == tls_web.bodies["jpeg"][1]
    assert reason_for(f"{base.replace('localhost', '127.0.0.1')}/jpeg/1") == "tls"  # the certificate has another name
    assert (
        reason_for(f"{base}/jpeg/1", dataclasses.replace(SETTINGS, allow_private_addresses=False)) == "private_address"
    )
    began = time.monotonic()
    assert reason_for(f"{base}/drip/1") == "timeout"
    assert reason_for(f"{base}/drip_headers/1") == "timeout"
    assert time.monotonic() - began < 2 * SETTINGS.total_seconds + 1
