"""Limits of requests and tokens a minute, for threads that send requests side by side."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from prompts.errors import PromptError

WINDOW_SECONDS = 60.0


@dataclass
class RateLimits:
    """No window of 60 seconds has more requests, or tokens, than its limit.

    Attributes:
        requests_per_minute: None: no limit.
        tokens_per_minute: None: no limit. A request counts with the most that it may cost until its cost is known.
        clock: Seconds, from any start.
        sent: Requests, all in all.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    clock: Callable[[], float] = time.monotonic
    sent: int = field(default=0, init=False)
    _recent: deque[list[float]] = field(default_factory=deque, init=False, repr=False)  # [time, tokens] of requests
    _paused_until: float = field(default=float("-inf"), init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def acquire(self, tokens: int, sleep: Callable[[float], None]) -> list[float]:
        """Wait until a request may be sent, and count it; returns what `correct` takes.

        Raises:
            PromptError: It alone may take more tokens than a minute has.
        """
        if self.tokens_per_minute is not None and tokens > self.tokens_per_minute:
            raise PromptError(
                f"prompts.tokens_per_minute ({self.tokens_per_minute}) is less than one request may take ({tokens}); "
                "raise it, or lower prompts.answer_tokens."
            )
        while True:
            with self._lock:
                wait = self._wait(tokens)
                if wait <= 0:
                    entry = [self.clock(), float(tokens)]
                    self._recent.append(entry)
                    self.sent += 1
                    return entry
            sleep(wait)

    def correct(self, entry: list[float], tokens: int) -> None:
        """Count a request with what it has cost."""
        with self._lock:
            entry[1] = float(tokens)

    def pause(self, seconds: float) -> None:
        """Send nothing for a while: the server has asked for it."""
        with self._lock:
            self._paused_until = max(self._paused_until, self.clock() + seconds)

    def _wait(self, tokens: int) -> float:
        """Seconds until something may have changed; 0 if a request may be sent now."""
        now = self.clock()
        while self._recent and self._recent[0][0] <= now - WINDOW_SECONDS:
            self._recent.popleft()
        if self._paused_until > now:
            return self._paused_until - now
        counts = [
            (len(self._recent) + 1, self.requests_per_minute),
            (sum(entry[1] for entry in self._recent) + tokens, self.tokens_per_minute),
        ]
        if any(limit is not None and count > limit for count, limit in counts):
            return self._recent[0][0] + WINDOW_SECONDS - now if self._recent else 0.0
        return 0.0
