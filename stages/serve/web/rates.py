"""How often a caller may ask, and how much at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from stages.serve.web.errors import RequestError

_MAX_CALLERS = 10_000  # then those are forgotten that are as good as new
_MINUTE = 60.0


@dataclass
class Caller:
    """All requests with one API key, or without keys from one address.

    Attributes:
        left: Requests that it may send now; below 0 after one for more pictures than were left. Infinite without limit.
        since: When `left` was right; seconds.
        running: Its requests that are being answered.
    """

    left: float
    since: float
    running: int = 0


class Rates:
    """A token bucket for each caller, of a minute's requests, and a count of those that run.

    Args:
        per_minute: Requests of a caller; None: no limit.
        concurrent: Requests of a caller at once; None: no limit.
        clock: Returns seconds.
    """

    def __init__(
        self, per_minute: int | None, concurrent: int | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_minute = per_minute
        self._concurrent = concurrent
        self._clock = clock
        self._callers: dict[str, Caller] = {}

    @contextmanager
    def request(self, name: str) -> Iterator[Caller]:
        """Count a request while it is answered.

        Raises:
            RequestError: 429; the caller has sent too many.
        """
        caller = self._refilled(name)
        if self._concurrent is not None and caller.running >= self._concurrent:
            raise RequestError(
                429, f"At most {self._concurrent} requests at once are accepted; wait until one is answered."
            )
        if self._per_minute is not None and caller.left < 1:
            seconds = math.ceil((1 - caller.left) * _MINUTE / self._per_minute)
            raise RequestError(
                429,
                f"At most {self._per_minute} requests a minute are accepted; try again in {seconds} s.",
                retry_after=seconds,
            )
        caller.left -= 1
        caller.running += 1
        try:
            yield caller
        finally:
            caller.running -= 1

    def _refilled(self, name: str) -> Caller:
        now = self._clock()
        if name not in self._callers and len(self._callers) >= _MAX_CALLERS:
            self._callers = {
                name: caller
                for name, caller in self._callers.items()
                if caller.running or not self._is_full(caller, now)
            }
        caller = self._callers.setdefault(name, Caller(left=self._full, since=now))
        caller.left, caller.since = self._left(caller, now), now
        return caller

    @property
    def _full(self) -> float:
        return math.inf if self._per_minute is None else float(self._per_minute)

    def _left(self, caller: Caller, now: float) -> float:
        return min(self._full, caller.left + (now - caller.since) * (self._per_minute or 0) / _MINUTE)

    def _is_full(self, caller: Caller, now: float) -> bool:
        return self._left(caller, now) >= self._full
