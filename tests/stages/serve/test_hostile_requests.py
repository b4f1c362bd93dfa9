"""Requests that no well-behaved client sends are refused in a sentence that shows nothing of this machine."""

from __future__ import annotations

import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.support.hostile_requests import Asked, hostile_requests, random_requests

LEAK = re.compile(r"Traceback|File \"|site-packages|/tmp|/home|0x[0-9a-f]{6}")
HOSTILE = hostile_requests()


def answer(client: TestClient, asked: Asked) -> Any:
    options = dict(asked.options)
    if isinstance(options.get("data"), bytes):
        options["content"] = options.pop("data")
    return client.request(asked.method, asked.path, **options)


@pytest.mark.parametrize("case", HOSTILE)
def test_named_ones(client: TestClient, case: str) -> None:
    response = answer(client, HOSTILE[case])
    assert 400 <= response.status_code < 500, response.text
    message = response.json()["error"]["message"]
    assert message.endswith(".")
    assert len(message) < 500
    assert not LEAK.search(response.text)


def test_random_ones(client: TestClient) -> None:
    for asked in random_requests(0, 40):
        response = answer(client, asked)
        assert response.status_code < 500, (asked, response.text)
        assert not LEAK.search("" if response.status_code == 200 else response.text)
