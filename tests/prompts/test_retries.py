"""How long a failed request waits."""

from __future__ import annotations

import email.utils
import time

import pytest

from prompts.retries import asked_wait, growing_wait


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": " 7 "}, 7),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7),
        ({"retry-after": "1e9"}, 1e9),
        ({"retry-after": "inf"}, float("inf")),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Wed, 99 Xyz 2015"}, None),
        ({}, None),
    ],
)
def test_the_wait_that_a_server_asks_for(headers: dict[str, str], seconds: float | None) -> None:
    assert asked_wait(headers) == seconds


def test_a_date_to_come_is_a_wait() -> None:
    wait = asked_wait({"retry-after": email.utils.formatdate(time.time() + 30, usegmt=True)})
    assert wait is not None
    assert 25 < wait <= 30


def test_waits_grow_up_to_a_limit() -> None:
    waits = [growing_wait(attempt) for attempt in (0, 1, 2, 3, 10, 10_000)]
    assert waits == sorted(waits[:4]) + waits[4:]
    assert 0.3 < waits[0] <= 0.5
    assert all(20 < wait <= 30 for wait in waits[4:])
