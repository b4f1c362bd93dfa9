"""The routes that are not OpenAI's, and the errors that no request can bring about by itself."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from stages.serve.config import ServeConfig
from stages.serve.painting import (
    Accepted,
    Event,
    Fields,
    NoPainterError,
    PaintersBusyError,
    PaintingFailedError,
    Refused,
    Served,
    paint_until,
)
from stages.serve.web.application import make_application
from tests.support.local_painters import NAME, WithoutUploads, noise_picture

ACCEPTED = Accepted(size=(32, 32), text_tokens=1, reference_tokens=1, picture_tokens=1, title=NAME)
FORM = {"prompt": "a [cat]", "word": "cat"}
PICTURE = noise_picture()


class FailingPainters(WithoutUploads):
    """Painters that raise an error, at once or after they have taken the request."""

    served = Served(title=NAME)

    def __init__(self, error: Exception | None, *, taken: bool = False) -> None:
        self.error = error
        self.taken = taken
        self.closed = False

    async def paint(self, fields: Fields, seconds: float) -> AsyncGenerator[Event, None]:
        try:
            if self.taken:
                yield ACCEPTED
            if self.error is None:
                await asyncio.sleep(60)
            else:
                raise self.error
        finally:
            self.closed = True

    async def check_ready(self) -> Served:
        if self.error is not None:
            raise self.error
        return self.served


def client_of(painters: FailingPainters) -> TestClient:
    settings = ServeConfig(timeout_seconds=0.2)
    application = make_application(painters, NAME, settings)
    return TestClient(application, base_url="http://localhost", raise_server_exceptions=False)


def ask_generate(client: TestClient) -> Any:
    fields = {"prompt": "a cat", "word": "cat"}
    return client.post("/generate", data=fields, files={"subject": ("a.png", PICTURE)})


def ask_edits(client: TestClient) -> Any:
    return client.post("/v1/images/edits", data={"prompt": "a [cat]"}, files={"image": ("a.png", PICTURE)})


def ask_generations(client: TestClient) -> Any:
    return client.post("/v1/images/generations", json={"prompt": "a cat"})


FAILURES: dict[str, tuple[Exception | None, bool, int, str, str | None, bool]] = {
    "busy": (PaintersBusyError(), False, 429, "rate_limit_error", None, True),
    "none ready": (NoPainterError(), False, 503, "server_error", None, True),
    "none takes it": (None, False, 503, "server_error", None, True),
    "gone while painting": (NoPainterError(), True, 503, "server_error", None, True),
    "an error of ours": (PaintingFailedError("secret"), True, 500, "server_error", "false", False),
    "an error of Python": (RuntimeError("secret"), True, 500, "server_error", "false", False),
    "too slow": (None, True, 504, "server_error", "false", False),
}


@pytest.mark.parametrize("case", FAILURES)
@pytest.mark.parametrize("ask", [ask_generate, ask_edits, ask_generations])
def test_failures_say_whether_to_ask_again(ask: Callable[[TestClient], Any], case: str) -> None:
    error, taken, status, kind, should_retry, has_retry_after = FAILURES[case]
    painters = FailingPainters(error, taken=taken)
    response = ask(client_of(painters))
    body = response.json()["error"]
    assert (response.status_code, body["type"]) == (status, kind)
    assert sorted(body) == ["code", "message", "param", "type"]
    assert "secret" not in body["message"]
    assert response.headers.get("x-should-retry") == should_retry
    assert ("Retry-After" in response.headers) == has_retry_after
    assert painters.closed


def test_an_error_in_a_stream_is_an_event() -> None:
    client = client_of(FailingPainters(PaintingFailedError("secret"), taken=True))
    response = client.post("/v1/images/generations", json={"prompt": "a cat", "stream": True})
    assert response.status_code == 200  # it was sent with the first event
    event = json.loads(response.text.partition("data: ")[2])
    assert event["error"]["code"] == "internal_error"
    refused = client_of(FailingPainters(PaintersBusyError()))
    assert refused.post("/v1/images/generations", json={"prompt": "a cat", "stream": True}).status_code == 429


def test_a_reader_that_leaves_ends_the_painting() -> None:
    async def leave() -> bool:
        painters = FailingPainters(None, taken=True)
        events = paint_until(painters, {}, 60)
        assert await anext(events) == ACCEPTED
        await events.aclose()
        return painters.closed

    assert asyncio.run(leave())


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("GET", "/nowhere", {}, 404),
        ("POST", "/", {}, 405),
        ("GET", "/generate", {}, 405),
        ("GET", "/v1/images/edits", {}, 405),
        ("POST", "/v1/images/variations", {}, 404),
        ("PUT", f"/v1/models/{NAME}", {}, 405),
        ("POST", "/v1/images/edits", {"json": {}}, 415),
        ("POST", "/v1/images/generations", {"data": {"prompt": "a cat"}}, 415),
        ("POST", "/v1/images/generations", {"json": []}, 400),
        ("POST", "/v1/images/generations", {"json": {"prompt": "cat " * 50_000}}, 413),
        ("POST", "/generate?mask=maybe", {}, 422),
        (
            "POST",
            "/v1/images/edits",
            {"content": b"no boundary", "headers": {"Content-Type": "multipart/form-data"}},
            422,
        ),
        ("POST", "/v1/images/generations", {"content": b"{", "headers": {"Content-Type": "application/json"}}, 400),
        ("POST", "/v1/images/generations", {"content": b"\xff", "headers": {"Content-Type": "application/json"}}, 400),
        (
            "POST",
            "/v1/images/generations",
            {"content": b"[" * 9999, "headers": {"Content-Type": "application/json"}},
            400,
        ),
    ],
)
def test_every_error_has_openais_body(
    client: TestClient, method: str, path: str, options: dict[str, Any], status: int
) -> None:
    response = client.request(method, path, **options)
    assert response.status_code == status
    error = response.json()["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["type"] == "invalid_request_error"
    assert error["message"].endswith(".")


def test_generate_answers_with_a_picture(client: TestClient) -> None:
    fields = {"prompt": "a cat in a hat", "word": "cat"}
    answer = client.post("/generate", data=fields, files={"subject": ("a.png", PICTURE)})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    refused = client.post("/generate", data={**fields, "word": "dog"}, files={"subject": ("a.png", PICTURE)})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "word")


def test_health_and_readiness(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "alive", "model": f"{NAME} version 1"}
    assert client.get("/ready").json()["status"] == "ready"
    for path in ("/", "/page/page.js", "/health", "/ready"):
        assert client.head(path).status_code == 200  # as load balancers ask
    assert client_of(FailingPainters(PaintersBusyError())).get("/ready").json()["status"] == "busy"
    broken = client_of(FailingPainters(NoPainterError()))
    assert broken.get("/ready").status_code == 503
    assert broken.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/page/page.js", "text/javascript"),
        ("/page/page.css", "text/css"),
        ("/page/icon.svg", "image/svg"),
    ],
)
def test_the_page_may_load_nothing_from_elsewhere(client: TestClient, path: str, kind: str) -> None:
    answer = client.get(path)
    assert answer.headers["content-type"].startswith(kind)
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert not re.search(r"<style|<script>|style=|\son\w+=|https?://(?!www\.w3\.org/)", answer.text)


@pytest.mark.parametrize("path", ["/page/", "/page/nothing.js", "/page/../web/page.py", "/page/%2e%2e/config.py"])
def test_only_files_of_the_page_are_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404
    assert client.get(path).json()["error"]["code"] == "not_found"


def test_models(client: TestClient) -> None:
    model, *concepts = client.get("/v1/models").json()["data"]
    assert model == client.get(f"/v1/models/{NAME}").json()
    assert [concept["id"] for concept in concepts] == [f"{NAME}:tom", f"{NAME}:tina"]
    assert concepts[0] == client.get(f"/v1/models/{NAME}:tom").json()
    assert (concepts[0]["concept"], concepts[0]["placeholder"], concepts[0]["word"]) == (True, "[v]", "cat")
    assert (model["id"], model["object"], model["owned_by"]) == (NAME, "model", "realword")
    for other in ("gpt-image-2", "a/b"):
        error = client.get(f"/v1/models/{other}")
        assert (error.status_code, error.json()["error"]["code"]) == (404, "model_not_found")


def test_the_schema_has_every_field_and_its_examples_are_accepted(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert {"/generate", "/health", "/ready", "/v1/models", "/v1/images/edits"} <= set(schema["paths"])
    body = schema["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"image", "mask", "prompt", "subjects", "seed", "mask_every"} <= set(body["properties"])
    generations = schema["paths"]["/v1/images/generations"]["post"]["requestBody"]["content"]["application/json"]
    assert client.post("/v1/images/generations", json={**generations["example"], "prompt": "a cat"}).status_code == 200


def test_refusals_without_a_field_have_no_param() -> None:
    class Refusing(FailingPainters):
        async def paint(self, fields: Fields, seconds: float) -> AsyncGenerator[Event, None]:
            yield Refused(field="", message="It does not fit.")

    error = ask_edits(client_of(Refusing(None))).json()["error"]
    assert (error["message"], error["param"]) == ("It does not fit.", None)
