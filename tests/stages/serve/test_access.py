"""Which requests are refused before their bodies are read: by host, origin, key and rate."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.testclient import TestClient

from stages.serve.api_keys import parse_api_keys
from stages.serve.config import ServeConfig
from stages.serve.painting import Accepted, NoPainterError, Served
from stages.serve.web.application import make_application
from stages.serve.web.errors import RequestError
from stages.serve.web.rates import Rates
from tests.support.local_painters import TITLE, WithoutUploads

KEYS = "anna=topsecret,ben=other-secret"
PROMPT = {"prompt": "a cat"}


class NoPainters(WithoutUploads):
    """Painters that are gone: a request that comes to them is answered with 503."""

    served = Served(title=TITLE)

    async def paint(self, fields: Any, seconds: float) -> Any:
        if fields:
            raise NoPainterError
        yield Accepted(size=(1, 1), text_tokens=1, reference_tokens=1, picture_tokens=1, title=TITLE)

    async def check_ready(self) -> Served:
        """They pretend to be there."""
        return self.served


def application_of(keys: str | None = None, **settings: Any) -> FastAPI:
    return make_application(NoPainters(), "model", ServeConfig(**settings), parse_api_keys(keys))


def client_of(keys: str | None = None, **settings: Any) -> TestClient:
    application = application_of(keys, **settings)
    return TestClient(application, base_url="http://localhost", raise_server_exceptions=False)


def post(client: TestClient, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post("/v1/images/generations", json=PROMPT, headers=named)


def code_of(answer: Any) -> tuple[int, str]:
    error = answer.json()["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["message"].endswith(".")
    return answer.status_code, error["code"]


# Keys


@pytest.mark.parametrize("value", ["Bearer topsecret", "bearer topsecret", "Bearer  other-secret", "BEARER topsecret "])
def test_a_key_is_let_in(value: str) -> None:
    assert post(client_of(KEYS), authorization=value).status_code == 503
    assert client_of(KEYS).get("/v1/models", headers={"authorization": value}).status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        *(None, "", "Bearer", "Bearer ", "Bearer mistaken", "Bearer topsecre", "Bearer topsecrett", "topsecret"),
        *("Basic topsecret", "Bearer topsecret other-secret", "Bearer anna=topsecret", "Bearer anna", "Bearer t\xf6p"),
    ],
)
def test_other_keys_are_refused_as_openai_does(value: str | None) -> None:
    headers = {} if value is None else {b"authorization": value.encode("latin-1")}
    answer = client_of(KEYS).post("/v1/images/generations", json=PROMPT, headers=headers)
    assert code_of(answer) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert value is None or len(value) < 9 or value[7:] not in answer.text


@pytest.mark.parametrize("path", ["/metrics", "/openapi.json", "/v1/models", "/nowhere", "/pages", "//", "/health/x"])
def test_what_needs_a_key(path: str) -> None:
    client = client_of(KEYS)
    assert code_of(client.get(f"http://localhost{path}")) == (401, "invalid_api_key")
    assert code_of(client.post(path)) == (401, "invalid_api_key")
    assert client.get(f"http://localhost{path}", headers={"authorization": "Bearer topsecret"}).status_code in (
        200,
        404,
    )


@pytest.mark.parametrize("path", ["/", "/health", "/ready"])
def test_what_needs_none(path: str) -> None:
    client = client_of(KEYS)
    assert client.get(path).status_code == client.head(path).status_code == 200
    assert code_of(client.post(path)) == (401, "invalid_api_key")


# Hosts


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        *(({}, host) for host in ("localhost", "127.0.0.1", "[::1]", "LOCALHOST", "localhost.", "localhost:8000")),
        ({"host": "gpu-box"}, "gpu-box:8000"),
        ({"host": "192.168.1.5", "allow_anonymous": True}, "192.168.1.5:8000"),
        ({"host": "0.0.0.0"}, "10.1.2.3:8000"),
        ({"host": "0.0.0.0"}, "[fd00::1]"),
        ({"host": "::"}, "localhost"),
        ({"allowed_hosts": ["pictures.example.org"]}, "Pictures.Example.org"),
        ({"allowed_hosts": ["*.example.org"]}, "a.b.example.org:443"),
        ({"allowed_hosts": ["*"]}, "anything.example"),
        ({"allowed_hosts": ["fd00::1"]}, "[fd00::1]:8000"),
    ],
)
def test_a_host_of_ours(settings: dict[str, Any], host: str) -> None:
    assert client_of(**settings).get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        *(({}, host) for host in ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "192.168.1.5")),
        *(({}, host) for host in ("", "[", "localhost@evil.example", "localhost:x", "evil.example#localhost", "[::2]")),
        *(({}, host) for host in ("localhost evil.example", "xn--loclhost-rza", "2130706433", "0.0.0.0")),
        ({"host": "0.0.0.0"}, "evil.example"),
        ({"host": "::"}, "evil.example:8000"),
        ({"allowed_hosts": ["*.example.org"]}, "example.org"),
        ({"allowed_hosts": ["*.example.org"]}, "evilexample.org"),
        ({"allowed_hosts": ["example.org"]}, "a.example.org"),
    ],
)
def test_another_host_is_refused(settings: dict[str, Any], host: str) -> None:
    for keys in (None, KEYS):
        answer = client_of(keys, **settings).get("/health", headers={"host": host})
        assert code_of(answer) == (421, "wrong_host")
        assert "serve.allowed_hosts" in answer.text


@pytest.mark.parametrize("name", ["https://example.org", "example.org:443", "", "a b", "exa*mple.org", "*.", "a..b"])
def test_an_allowed_host_is_a_name(name: str) -> None:
    with pytest.raises(ValidationError):
        ServeConfig(allowed_hosts=[name])


# Other sites


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec_fetch_site": "same-origin", "origin": "http://localhost"},
        {"sec_fetch_site": "none"},
        {"origin": "http://localhost"},
        {"origin": "https://localhost"},  # a proxy in front of the server speaks TLS
    ],
)
def test_programs_and_our_page_may_ask(headers: dict[str, str]) -> None:
    assert post(client_of(), **headers).status_code == 503


@pytest.mark.parametrize(
    "headers",
    [
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "cross-site", "origin": "http://localhost"},
        {"sec_fetch_site": "?"},
        {"origin": "https://evil.example"},
        {"origin": "http://localhost:3000"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://["},
    ],
)
def test_pages_of_other_sites_may_not(headers: dict[str, str]) -> None:
    answer = post(client_of(), **headers)
    assert code_of(answer) == (403, "cross_site")
    assert post(client_of(KEYS), authorization="Bearer topsecret", **headers).status_code == 503  # they have no key


def test_no_other_site_may_read_answers() -> None:
    client = client_of()
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    answers = [client.options("/v1/images/edits", headers=asked), client.get("/v1/models", headers=asked)]
    assert [answer.status_code for answer in answers] == [403, 200]
    assert not [name for answer in answers for name in answer.headers if name.startswith("access-control")]


# Rates


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def refusal(rates: Rates, name: str = "anna") -> int | None:
    try:
        with rates.request(name):
            return None
    except RequestError as error:
        return error.retry_after if error.status == 429 else -1


def test_a_minutes_requests_come_back_one_by_one() -> None:
    clock = Clock()
    rates = Rates(3, None, clock)
    assert [refusal(rates) for _ in range(4)] == [None, None, None, 20]
    assert refusal(rates, "ben") is None
    clock.now = 19.5
    assert refusal(rates) == 1
    clock.now = 20.0
    assert [refusal(rates), refusal(rates)] == [None, 20]
    clock.now = 1e6
    assert [refusal(rates) for _ in range(4)] == [None, None, None, 20]


def test_a_wait_is_as_long_as_it_says() -> None:
    clock = Clock()
    for per_minute in (1, 7, 60, 1000):
        rates = Rates(per_minute, None, clock)
        while (seconds := refusal(rates)) is None:
            pass
        clock.now += seconds
        assert refusal(rates) is None


def test_more_pictures_are_more_requests() -> None:
    clock = Clock()
    rates = Rates(6, None, clock)
    with rates.request("anna") as caller:
        caller.left -= 9
    assert refusal(rates) == 50  # from -4 to 1


def test_requests_at_once() -> None:
    rates = Rates(None, 2)
    with rates.request("anna"), rates.request("anna"):
        assert refusal(rates) == 2
        assert refusal(rates, "ben") is None
    assert refusal(rates) is None
    assert [refusal(Rates(None, None)) for _ in range(99)] == [None] * 99


def test_callers_that_are_as_good_as_new_are_forgotten() -> None:
    clock = Clock()
    rates = Rates(1, None, clock)
    for number in range(10_000):
        clock.now += 0.1
        assert refusal(rates, str(number)) is None
    assert refusal(rates, "anna") is None
    assert len(rates._callers) < 1000
    assert refusal(rates, "9999") is not None


def test_the_rate_of_a_key_counts_its_pictures() -> None:
    client = client_of(KEYS, requests_per_minute=3)
    anna, ben = {"authorization": "Bearer topsecret"}, {"authorization": "Bearer other-secret"}
    assert client.post("/v1/images/generations", json={**PROMPT, "n": 3}, headers=anna).status_code == 503
    refused = client.post("/v1/images/generations", json=PROMPT, headers=anna)
    assert code_of(refused) == (429, "rate_limit_exceeded")
    assert refused.headers["retry-after"] == "20"
    assert client.get("/v1/models", headers=anna).status_code == 200
    assert client.post("/v1/images/generations", json=PROMPT, headers=ben).status_code == 503


# Every answer


@pytest.mark.parametrize("keys", [None, KEYS])
def test_headers_of_every_answer(keys: str | None) -> None:
    client = client_of(keys)
    evil = {"host": "evil.example"}
    asked = [client.get("/health"), client.get("/nowhere"), client.get("/", headers=evil), post(client)]
    assert len({answer.headers["x-request-id"] for answer in asked}) == len(asked)
    for answer in asked:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers


def test_a_proxy_that_counts_requests_adds_their_ids() -> None:
    answer = client_of().get("/health", headers={"x-request-id": "from the proxy"})
    assert "x-request-id" not in answer.headers  # the proxy adds it


async def sent_by(application: FastAPI, scope: dict[str, Any], *received: dict[str, Any]) -> list[Any]:
    """What the application sends to a client that sends these messages, and then none."""
    messages, sent = iter(received), []

    async def receive() -> Any:
        return next(messages, None) or await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await application(scope, receive, send)
    return sent


@pytest.mark.parametrize("path", ["/generate", "/v1/images/edits", "/v1/images/generations"])
def test_a_body_that_does_not_come_is_not_waited_for(path: str) -> None:
    kind = b"application/json" if path.endswith("generations") else b"multipart/form-data; boundary=x"
    headers = [(b"host", b"localhost"), (b"content-type", kind)]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
    body = {"type": "http.request", "body": b"--x\r\n", "more_body": True}
    start, _ = asyncio.run(sent_by(application_of(timeout_seconds=0.05), dict(scope), body))
    assert start["status"] == 408
    assert (b"x-should-retry", b"false") in start["headers"]
    assert asyncio.run(sent_by(application_of(), dict(scope), body, {"type": "http.disconnect"})) == []


def test_what_is_no_request_passes() -> None:
    messages = {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}
    sent = asyncio.run(sent_by(application_of(), {"type": "lifespan", "state": {}}, *messages))
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
