"""What stores answer when they refuse, over real connections, and the sentence for the user."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from upath import UPath

from stages.storage import store_path, write_whole
from stages.storage_errors import storage_error

#: The status and the code of S3's answer, and what the sentence says.
ANSWERS = [
    (404, "NoSuchBucket", "no such bucket"),
    (403, "AccessDenied", "permission to list, read, write and delete"),
    (403, "AllAccessDisabled", "permission"),
    (403, "InvalidAccessKeyId", "does not know these credentials"),
    (403, "SignatureDoesNotMatch", "does not know these credentials"),
    (400, "ExpiredToken", "expired: renew them and run the same command"),
    (400, "InvalidToken", "expired"),
    (400, "TokenRefreshRequired", "expired"),
    (403, "RequestTimeTooSkewed", "clock of .* is wrong"),
    (503, "SlowDown", "asked to slow down"),
    (503, "ServiceUnavailable", "slow down"),
    (400, "InvalidBucketName", "no valid name"),
    (500, "InternalError", "failed on its side"),
]


@dataclass
class RefusingStore:
    """A server that answers each request with an error, `times` times, and then with 200."""

    status: int = 403
    code: str = "AccessDenied"
    times: int = 10**9
    requests: int = 0
    server: ThreadingHTTPServer = field(init=False)

    def __enter__(self) -> RefusingStore:
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                store.requests += 1
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                text = f"<Error><Code>{store.code}</Code><Message>No.</Message></Error>"
                refused = store.requests <= store.times
                body = text.encode() if refused and self.command != "HEAD" else b""
                self.send_response(store.status if refused else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_HEAD = do_POST = answer  # noqa: N815 (the names that http.server calls)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    UPath("s3://bucket").fs.clear_instance_cache()
    yield
    UPath("s3://bucket").fs.clear_instance_cache()


def sentence_of_write(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(Exception) as caught:  # noqa: PT011 (each cause has another type)
        write_whole(store_path("s3://bucket/run/note"), "text")
    sentence = storage_error(caught.value, "s3://bucket/run")
    assert sentence is not None, repr(caught.value)
    assert sentence.startswith("s3://bucket/run: ")
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(("status", "code", "match"), ANSWERS, ids=[code for _, code, _ in ANSWERS])
def test_a_refusal_is_one_sentence(monkeypatch: pytest.MonkeyPatch, status: int, code: str, match: str) -> None:
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)  # beside botocore's, only to save time here
    with RefusingStore(status, code) as store:
        sentence = sentence_of_write(monkeypatch, store.endpoint)
    assert re.search(match, sentence), sentence


@pytest.mark.parametrize("code", ["SlowDown", "InternalError", "RequestTimeout"])
def test_a_store_that_is_busy_for_a_while_is_asked_again(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    with RefusingStore(503, code, times=3) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        write_whole(store_path("s3://bucket/run/note"), "text")
        assert store.requests == 4


def test_a_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with RefusingStore() as store:
        endpoint = store.endpoint
    assert "cannot be reached" in sentence_of_write(monkeypatch, endpoint)


def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with RefusingStore() as store:
        sentence = sentence_of_write(monkeypatch, store.endpoint)
    assert "no credentials" in sentence


def named(name: str, **values: object) -> Exception:
    """An error of a library that is not installed here, by its name and attributes."""
    error = type(name, (Exception,), {})("no")
    for key, value in values.items():
        setattr(error, key, value)
    return error


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (named("HttpError", code=403), "permission"),
        (named("HttpError", code="429"), "slow down"),
        (named("HttpError", code=401), "does not know"),
        (named("DefaultCredentialsError"), "no credentials"),
        (named("RefreshError"), "expired"),
        (named("ResourceNotFoundError", error_code="ContainerNotFound"), "no such bucket or container"),
        (named("HttpResponseError", error_code="AuthorizationFailure"), "permission"),
        (named("HttpResponseError", error_code="ServerBusy"), "slow down"),
        (named("ClientAuthenticationError"), "does not know"),
        (named("ServiceRequestError"), "cannot be reached"),
    ],
    ids=repr,
)
def test_the_errors_of_google_and_azure(error: Exception, match: str) -> None:
    wrapped = OSError("failed")
    wrapped.__cause__ = error
    for one in (error, wrapped):
        assert match in (storage_error(one, "gs://bucket/run") or "")


@pytest.mark.parametrize("error", [ValueError("no"), FileNotFoundError(2, "No such file", "x"), KeyError("Code")])
def test_other_errors_are_none_of_a_store(error: Exception) -> None:
    assert storage_error(error, "s3://bucket/run") is None
