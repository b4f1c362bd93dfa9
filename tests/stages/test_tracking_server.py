"""What is said of an MLflow server or database that cannot be used. The servers are real, on the loopback interface."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stages import tracking_server
from stages.contract import StageError
from stages.tracking_errors import reason
from stages.tracking_server import check_tracking_server, take_credentials, tracking_errors
from tests.support.mlflow_server import free_port

NO_SERVER = "what answers there is no MLflow server"
SIGN_IN = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"


@dataclass(frozen=True)
class Answer:
    """What a server says to everything; to the question for its version, `version`."""

    status: int = 200
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    version: str = "3.17.2"


@contextmanager
def answering(answer: Answer, certificate: Path | None = None) -> Iterator[str]:
    """The address of a server that gives this answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answer.version if self.path.endswith("/version") else answer.body
            status = 200 if self.path.endswith("/version") and answer.version else answer.status
            if not status:
                return  # ends the connection
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    scheme = "http"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    try:
        yield f"{scheme}://localhost:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_server, "_RETRIES", 0)
    monkeypatch.setattr(tracking_server, "_SECONDS", 1)


ANSWERS = {
    "a page": (Answer(body="<html>Welcome</html>"), NO_SERVER),
    "nothing": (Answer(), NO_SERVER),
    "a list": (Answer(body="[]"), NO_SERVER),
    "no content": (Answer(204), NO_SERVER),
    "another program's JSON": (Answer(404, '{"detail": "Not Found"}'), "version 3"),
    "a login page": (Answer(302, "", {"Location": "/login"}), NO_SERVER),
    "a wrong password": (Answer(401, "You are not authenticated."), SIGN_IN),
    "a wrong password in JSON": (Answer(401, '{"message": "who are you?"}'), SIGN_IN),
    "a wrong token of a gateway": (Answer(401, '{"error_code": "UNAUTHENTICATED", "message": "no"}'), SIGN_IN),
    "no permission": (Answer(403, "Permission denied"), "ask for EDIT"),
    "no permission in JSON": (Answer(403, '{"error_code": "PERMISSION_DENIED", "message": "x"}'), "ask for EDIT"),
    "a gateway's refusal": (Answer(403, "<html>Forbidden</html>"), "ask for EDIT"),
    "another host name": (Answer(403, "Invalid Host header - possible DNS rebinding"), "--allowed-hosts"),
    "another path": (Answer(404, "<html>Not Found</html>"), "check its path"),
    "too many requests": (Answer(429, "", {"Retry-After": "3600"}), "error 429"),
    "an error": (Answer(500, "oops"), "error 500"),
    "a gateway without a server": (Answer(502, "<html>Bad Gateway</html>"), "error 502"),
    "a server that starts": (Answer(503), "error 503"),
    "a gateway's timeout": (Answer(504), "error 504"),
    "a proxy that wants a password": (Answer(407), NO_SERVER),
    "a hung-up connection": (Answer(0, version=""), "ends the connection"),
    "an old server": (Answer(404, "<html>", version="2.22.1"), "has the version 2.22; it must be 3.0 or later"),
    "an old database": (
        Answer(400, '{"error_code": "INVALID_STATE", "message": "Run mlflow db upgrade.\\nNow."}'),
        "Run mlflow db upgrade",
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_a_server_that_cannot_be_used_is_one_sentence(case: str) -> None:
    answer, meaning = ANSWERS[case]
    with answering(answer) as uri, pytest.raises(StageError) as error:
        check_tracking_server(uri, "realword")
    assert str(error.value).startswith(f"The MLflow server {uri} ")
    assert meaning in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("version", ["3.0.0", "3.17.2", "4.1.0rc1", "<html>no version</html>"])
def test_a_server_without_the_experiment_can_be_used(version: str) -> None:
    missing = Answer(404, '{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no experiment"}', version=version)
    with answering(missing) as uri:
        check_tracking_server(uri, "realword")


AWAY = {
    "nothing listens": ("http://localhost:{port}", "The MLflow server http://localhost:{port}", "nothing listens"),
    "no such host": ("http://mlflow.invalid", "The MLflow server http://mlflow.invalid", "name of its host"),
    "a database is away": (
        "postgresql+psycopg2://anna:hush@localhost:{port}/x",
        "MLflow's database postgresql+psycopg2://***@localhost:{port}/x",
        "nothing listens",
    ),
    "no driver": ("mysql://anna:hush@localhost/x", "MLflow's database mysql://***@", "MySQLdb is not installed"),
    "no driver for MSSQL": ("mssql://anna@localhost/x", "MLflow's database mssql://***@", "pyodbc is not installed"),
}


@pytest.mark.parametrize("case", AWAY)
def test_what_is_away_is_one_sentence(case: str) -> None:
    port = free_port()
    uri, start, meaning = (text.format(port=port) for text in AWAY[case])
    with pytest.raises(StageError) as error:
        check_tracking_server(uri, "realword")
    assert str(error.value).startswith(start)
    assert meaning in str(error.value)
    assert "hush" not in str(error.value)


def test_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of an unknown authority is refused, taken when the authority is named, and no TLS is said to be that."""
    certificate = self_signed(tmp_path / "server.pem")
    found = Answer(404, '{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no experiment"}')
    with answering(found, certificate) as uri:
        with pytest.raises(StageError, match="MLFLOW_TRACKING_SERVER_CERT_PATH"):
            check_tracking_server(uri, "realword")
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
        check_tracking_server(uri, "realword")
    with answering(found) as uri, pytest.raises(StageError, match="does not use TLS"):
        check_tracking_server(uri.replace("http:", "https:"), "realword")


def self_signed(path: Path) -> Path:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
    return path


STORES = {
    "no credentials": ("NoCredentialsError", "Unable to locate credentials", "AWS_ACCESS_KEY_ID"),
    "expired": ("ClientError", "An error occurred (ExpiredToken) when calling PutObject", "refuses the credentials"),
    "a wrong key": ("ClientError", "An error occurred (InvalidAccessKeyId) when calling GetObject", "refuses the"),
    "no bucket": ("ClientError", "An error occurred (NoSuchBucket) when calling PutObject", "bucket of its files"),
    "no permission": ("ClientError", "An error occurred (AccessDenied) when calling PutObject", "no permission for"),
    "a small proxy": ("HTTPError", "413 Client Error: Request Entity Too Large for url: http://m", "client_max_body"),
    "a server's files": ("MlflowException", "When an mlflow-artifacts URI was supplied, the", "name that server"),
    "gone": ("MlflowException", "failures occurred while downloading\n#### x\n404 Client Error", "not there any more"),
    "a full disk": (
        "MlflowException",
        "The following failures occurred while downloading one or more artifacts from s3://b:\n##### File x #####\n"
        "[Errno 28] No space left on device",
        "No space left on device",
    ),
    "of a database": ("OperationalError", 'FATAL: database "x" does not exist', 'database "x" does not exist'),
    "a password": ("X", "API request to http://anna:hush@m/api failed with exception Odd", "Odd"),
    "nothing": ("OddError", "", "OddError"),
}


@pytest.mark.parametrize("case", STORES)
def test_what_errors_mean(case: str) -> None:
    kind, text, meaning = STORES[case]
    found = reason(type(kind, (Exception,), {})(text))
    assert meaning in found
    assert "\n" not in found
    assert "hush" not in found


def test_errors_of_other_code_pass() -> None:
    with pytest.raises(ZeroDivisionError), tracking_errors("http://mlflow"):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("uri", "left", "variables"),
    [
        ("http://anna:h%40sh@mlflow:5000/a", "http://mlflow:5000/a", {"USERNAME": "anna", "PASSWORD": "h@sh"}),
        ("https://token@mlflow", "https://mlflow", {"TOKEN": "token"}),
        ("http://mlflow:5000", "http://mlflow:5000", {}),
        ("postgresql://anna:hush@db/x", "postgresql://anna:hush@db/x", {}),
        ("", "", {}),
    ],
)
def test_the_password_of_a_servers_uri_goes_to_variables_of_its_own(
    uri: str, left: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    take_credentials()
    assert os.environ["MLFLOW_TRACKING_URI"] == left
    found = {name: os.environ[f"MLFLOW_TRACKING_{name}"] for name in ("USERNAME", "PASSWORD", "TOKEN")}
    assert found == {"USERNAME": "", "PASSWORD": "", "TOKEN": "", **variables}
