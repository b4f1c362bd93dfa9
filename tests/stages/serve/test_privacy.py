"""Neither prompts nor pictures nor keys are logged: by nobody, at no level, whatever becomes of a request."""

from __future__ import annotations

import base64
import logging
from collections.abc import AsyncGenerator

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from stages.serve.api_keys import parse_api_keys
from stages.serve.painting import Accepted, Event, Fields, PaintingFailedError, Served
from stages.serve.web.application import make_application
from tests.support.local_painters import NAME, SETTINGS, TITLE, WithoutUploads, noise_picture

KEY, PROMPT, NAME_OF_FILE = "kept-secret-key", "a [cat] in a hat", "kept-secret-file.png"
PICTURE = noise_picture(7)
HEADERS = {"Authorization": f"Bearer {KEY}"}
#: As they are, escaped, and in base64.
SECRETS = [
    KEY,
    "cat] in a",
    "cat in a hat",
    NAME_OF_FILE,
    str(PICTURE[40:60])[2:-1],
    base64.b64encode(PICTURE).decode()[60:90],
]


class LosingPainters(WithoutUploads):
    """Painters that fail after they have taken a request."""

    served = Served(title=TITLE)

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def paint(self, fields: Fields, seconds: float) -> AsyncGenerator[Event, None]:
        yield Accepted(size=(32, 32), text_tokens=1, reference_tokens=1, picture_tokens=1, title=TITLE)
        raise self.error

    async def check_ready(self) -> Served:
        """They are."""
        return self.served


class Logs:
    """What is logged and printed in a test."""

    def __init__(self, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
        caplog.set_level(logging.DEBUG)
        self.caplog = caplog
        self.capfd = capfd

    def read(self) -> str:
        printed = self.capfd.readouterr()
        everything = "\n".join((self.caplog.text, printed.out, printed.err))
        assert not [secret for secret in SECRETS if secret in everything]
        return everything


@pytest.fixture
def logs(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Logs:
    return Logs(caplog, capfd)


def ask_all(application: FastAPI) -> list[int]:
    """Good and bad requests of all routes; the statuses of their answers."""
    client = TestClient(application, base_url="http://localhost", raise_server_exceptions=False, headers=HEADERS)
    good, cut = ("image", (NAME_OF_FILE, PICTURE)), ("image", (NAME_OF_FILE, PICTURE[:900]))
    asked = {"prompt": PROMPT, "steps": "1"}
    bad_key = {"Authorization": f"Bearer {KEY}x"}
    answers = [
        client.post("/v1/images/edits", data=asked, files=[good]),
        client.post("/v1/images/edits", data={**asked, "stream": "true"}, files=[good]),
        client.post("/v1/images/edits", data=asked, files=[cut]),
        client.post("/v1/images/edits", data={**asked, PROMPT: PROMPT}, files=[good]),
        client.post("/v1/images/edits", data=asked, files=[good], headers=bad_key),
        client.post("/v1/images/generations", json={"prompt": PROMPT}),
        client.post("/v1/images/generations", json={"prompt": PROMPT, "n": 99}),
        client.post("/v1/images/generations", content=f'{{"prompt": "{PROMPT}"'),
        client.post("/generate", data={"prompt": PROMPT, "word": "dog"}, files={"subject": (NAME_OF_FILE, PICTURE)}),
        client.get(f"/v1/models/{PROMPT}"),
        client.get("/metrics"),
    ]
    assert not [secret for secret in SECRETS if secret in answers[-1].text]
    return [answer.status_code for answer in answers]


def test_of_requests_that_are_painted_or_refused(application: FastAPI, logs: Logs) -> None:
    assert ask_all(application) == [200, 200, 400, 400, 200, 200, 400, 415, 422, 404, 200]
    assert logs.read()


def test_of_requests_that_fail(logs: Logs) -> None:
    painters = LosingPainters(PaintingFailedError("MemoryError: no memory is left"))
    statuses = ask_all(make_application(painters, NAME, SETTINGS, parse_api_keys(f"anna={KEY}")))
    assert statuses[:6] == [500, 200, 500, 400, 401, 500]  # the second one is a stream
    assert "no memory is left" in logs.read()


def test_of_an_error_in_the_code(logs: Logs) -> None:
    assert ask_all(make_application(LosingPainters(KeyError(7)), NAME, SETTINGS))[0] == 500
    assert "KeyError: 7" in logs.read()
