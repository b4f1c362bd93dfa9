"""No minute has more requests or tokens than its limits, and a pause holds for all."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from prompts.errors import PromptError
from prompts.rate_limits import WINDOW_SECONDS, RateLimits


@dataclass
class Clock:
    """Time that passes by sleeping."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@pytest.mark.parametrize(("requests", "tokens"), [(3, None), (None, 100), (5, 100), (1, 60), (50, 61)])
def test_no_minute_has_more_than_its_limits(requests: int | None, tokens: int | None) -> None:
    clock, draw = Clock(), random.Random(0)
    limits = RateLimits(requests, tokens, clock)
    sent: list[tuple[float, int]] = []
    for _ in range(60):
        most = draw.randint(1, 60)
        entry = limits.acquire(most, clock.sleep)
        cost = draw.randint(0, most)
        sent.append((clock.now, cost))
        limits.correct(entry, cost)
        clock.now += draw.random()
    for start, _ in sent:
        window = [cost for time, cost in sent if start <= time < start + WINDOW_SECONDS]
        assert requests is None or len(window) <= requests
        assert tokens is None or sum(window) <= tokens
    assert limits.sent == 60


def test_without_limits_nothing_waits() -> None:
    clock = Clock()
    limits = RateLimits(clock=clock)
    for _ in range(1000):
        limits.acquire(10**6, clock.sleep)
    assert clock.now == 1000


def test_a_pause_holds_for_all_and_the_longest_counts() -> None:
    clock = Clock()
    limits = RateLimits(clock=clock)
    limits.pause(20)
    limits.pause(5)
    limits.acquire(1, clock.sleep)
    assert clock.now == pytest.approx(1020)


def test_a_request_that_no_minute_has_room_for_is_refused() -> None:
    with pytest.raises(PromptError, match=r"prompts\.tokens_per_minute \(100\).*\(101\).*prompts\.answer_tokens"):
        RateLimits(tokens_per_minute=100).acquire(101, Clock().sleep)
