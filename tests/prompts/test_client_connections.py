"""Connections of the client that fail: each is named by its cause."""

from __future__ import annotations

import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from prompts.errors import PromptError
from tests.support.prompt_writer import SmallWriter

Writers = Callable[..., SmallWriter]


class QuietServer(socketserver.ThreadingTCPServer):
    """Prints nothing when a client breaks off: that is what these tests are about."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore the error."""


@contextmanager
def byte_server(answer: bytes | None, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server that sends some bytes on each connection and closes it; None: it waits. Yields its port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65_536)
            if answer is None:
                done.wait()
            else:
                self.request.sendall(answer)

    done = threading.Event()
    with QuietServer(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            done.set()
            server.shutdown()
            thread.join()


def test_a_server_that_is_slow_is_named_with_the_setting(writer: Writers) -> None:
    with byte_server(None) as port:
        assert "no answer within 0.5 s (prompts.timeout_seconds)" in refused(writer, f"http://127.0.0.1:{port}/v1", 0.5)


def test_an_answer_that_drips_without_end_is_given_up(writer: Writers) -> None:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65_536)
            self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
            while not done.wait(0.05):
                self.request.sendall(b" ")

    done = threading.Event()
    with QuietServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}/v1"
            assert "no whole answer within 1 s" in refused(writer, url, 1.0)
        finally:
            done.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    """TLS with a certificate that nobody has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    certificate = builder.not_valid_before(now).not_valid_after(now + timedelta(days=1)).sign(key, hashes.SHA256())
    text = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    (tmp_path / "pem").write_bytes(certificate.public_bytes(Encoding.PEM) + key.private_bytes(*text))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")
    return context


def refused(writer: Writers, url: str, timeout_seconds: float = 20.0) -> str:
    with pytest.raises(PromptError, match=r"\(prompts.endpoint\) does not answer after 1 tries: ") as caught:
        writer(url, retries=0, timeout_seconds=timeout_seconds).write("mug", 1)
    assert "Connection error" not in str(caught.value)
    return str(caught.value)


def test_a_refused_connection_and_an_unknown_host_are_named(writer: Writers) -> None:
    assert "no server listens on that port" in refused(writer, "http://127.0.0.1:1/v1")
    assert "cannot be resolved (DNS)" in refused(writer, "http://no-such-host.invalid/v1")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "the server does not speak HTTP"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "the server does not speak HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "or only with TLS (https://)"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", "the server"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", "decompress"),
        (
            b"HTTP/1.1 307 Moved\r\nLocation: /v1/chat/completions\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            "redirects",
        ),
    ],
)
def test_a_server_that_does_not_answer_is_named(writer: Writers, answer: bytes, words: str) -> None:
    with byte_server(answer) as port:
        assert words in refused(writer, f"http://127.0.0.1:{port}/v1")


def test_tls_where_there_is_none_and_none_where_there_is_tls_are_named(writer: Writers, tls: ssl.SSLContext) -> None:
    with byte_server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        assert "its URL begins with http://, not https://" in refused(writer, f"https://127.0.0.1:{port}/v1")
    with byte_server(b"", tls) as port:
        assert "certificate is not accepted: self" in refused(writer, f"https://127.0.0.1:{port}/v1")
        assert "TLS (https://)" in refused(writer, f"http://127.0.0.1:{port}/v1")
