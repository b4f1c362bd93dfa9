"""Requests that no well-behaved client sends are refused in a sentence that shows nothing of this machine."""

from __future__ import annotations

import re

import pytest
from starlette.testclient import TestClient

from tests.support.hostile_requests import hostile_requests, random_requests

LEAK = re.compile(r"Traceback|File \"|site-packages|/tmp|/home|0x[0-9a-f]{6}")
HOSTILE = hostile_requests()


@pytest.mark.parametrize("case", HOSTILE)
def test_named_ones(client: TestClient, case: str) -> None:
    asked = HOSTILE[case]
    response = client.request(asked.method, asked.path, **asked.options)
    assert 400 <= response.status_code < 500, response.text
    message = response.json()["error"]["message"]
    assert message.endswith(".")
    assert len(message) < 500
    assert not LEAK.search(response.text)


def test_random_ones(client: TestClient) -> None:
    for asked in random_requests(0, 40):
        response = client.request(asked.method, asked.path, **asked.options)
        assert response.status_code < 500, (asked, response.text)
        assert not LEAK.search("" if response.status_code == 200 else response.text)
