"""Which failed requests are worth another try, when, and which may have cost something."""

from __future__ import annotations

import email.utils
import math
import random
import time
from collections.abc import Mapping
from typing import Any

import openai

from prompts.errors import was_never_sent

#: A server that asks for a longer wait is not waited for.
LONGEST_WAIT_SECONDS = 600.0

_FIRST_WAIT_SECONDS = 0.5
_LAST_WAIT_SECONDS = 30.0
#: The server has refused the request before the model could answer it.
_FREE = {503, *range(400, 408), *range(409, 500)}


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """The seconds that the server asks to wait (`retry-after-ms`, `Retry-After` in seconds or as a date); None: any."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if seconds >= 0:  # not for NaN
            return seconds
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    if date is None:
        return None
    try:
        return max(0.0, email.utils.mktime_tz(date) - time.time())
    except (OverflowError, ValueError):
        return None


def growing_wait(attempt: int) -> float:
    """Seconds before the next try: doubled with every attempt, a part of them at random, so that clients spread."""
    longest = min(_FIRST_WAIT_SECONDS * math.pow(2, min(attempt, 30)), _LAST_WAIT_SECONDS)
    return longest * (1 - 0.25 * random.random())


def is_temporary(response: Any) -> bool:
    """Whether the same request may succeed later."""
    said = response.headers.get("x-should-retry")
    if said in ("true", "false"):
        return said == "true"
    return response.status_code in (408, 409, 429) or response.status_code >= 500


def may_have_cost(error: openai.APIError) -> bool:
    """Whether a failed request may have been answered and charged for: its answer is lost then."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code not in _FREE
    return not was_never_sent(error)
