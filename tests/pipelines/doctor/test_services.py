"""The language model's endpoint, and MLflow's server or database."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipelines.config.loading import load_config
from pipelines.doctor import prompts, tracking
from pipelines.doctor.findings import Finding, Level, Setup
from tests.support.mlflow_server import free_port

MODELS = b'{"object": "list", "data": [{"id": "small", "object": "model", "created": 0, "owned_by": "me"}]}'


@contextmanager
def endpoint(status: int, body: bytes) -> Iterator[str]:
    """A server that answers every request alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def of_prompts(*settings: str) -> Finding:
    (finding,) = prompts.check(Setup.of(load_config("micro", settings)))
    return finding


@pytest.mark.parametrize(
    ("status", "body", "key", "level", "words"),
    [
        (200, MODELS, "", Level.GOOD, "answers"),
        (200, MODELS.replace(b"small", b"other"), "", Level.WARNING, "does not list prompts.model=small; it has other"),
        (200, b'{"object": "list", "data": []}', "", Level.GOOD, "answers"),
        (200, b"<html>", "", Level.UNKNOWN, "lists no models"),
        (401, b'{"error": {"message": "no"}}', "", Level.PROBLEM, "without a key: set OPENAI_API_KEY"),
        (401, b'{"error": {"message": "no"}}', "sk-1234567890", Level.PROBLEM, "the key in OPENAI_API_KEY"),
        (403, b"{}", "sk-1234567890", Level.PROBLEM, "answers 403"),
        (404, b"{}", "", Level.UNKNOWN, "lists no models"),
        (500, b"", "", Level.UNKNOWN, "lists no models"),
        (200, MODELS, "two words", Level.PROBLEM, "OPENAI_API_KEY contains a space"),
        (200, MODELS, "'sk-1'", Level.PROBLEM, "OPENAI_API_KEY is in quotes"),
    ],
)
def test_an_endpoint(
    status: int, body: bytes, key: str, level: Level, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with endpoint(status, body) as url:
        finding = of_prompts(f"prompts.endpoint={url}", "prompts.model=small")
    assert (finding.level, words in finding.text) == (level, True), finding.text
    assert not key or key not in finding.text


def test_endpoints_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    finding = of_prompts(f"prompts.endpoint=http://127.0.0.1:{free_port()}/v1")
    assert (finding.level, "cannot be reached" in finding.text) == (Level.PROBLEM, True)
    finding = of_prompts("prompts.endpoint=https://api.openai.com/v1")
    assert (finding.level, "needs a key: set OPENAI_API_KEY" in finding.text) == (Level.PROBLEM, True)
    assert of_prompts().level is Level.GOOD


def of_tracking(*settings: str) -> Finding:
    (finding,) = tracking.check(Setup.of(load_config("micro", settings)))
    return finding


def test_records_in_the_run_folder() -> None:
    assert of_tracking().level is Level.GOOD


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["run.folder=s3://bucket/run"], "there are no records and no registry"),
        (["run.tracking_uri=http://127.0.0.1:{port}"], "cannot be used"),
        (["run.tracking_uri=postgresql://me@127.0.0.1:{port}/mlflow"], "cannot be used"),
    ],
    ids=["nowhere", "no server", "no database"],
)
def test_records_that_cannot_be_kept(settings: list[str], words: str) -> None:
    finding = of_tracking(*(setting.format(port=free_port()) for setting in settings))
    assert (finding.level, words in finding.text) == (Level.PROBLEM, True), finding.text


def test_a_wrong_variable_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://server")
    assert "MLFLOW_TRACKING_URI" in of_tracking().text
