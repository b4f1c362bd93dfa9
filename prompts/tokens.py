"""What requests to a language model cost in tokens: the most that one may, what it did, and a budget for all."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prompts.errors import PromptError

#: Tokens that a server's template puts around the messages.
_TEMPLATE_TOKENS = 512


def most_tokens(request: Mapping[str, Any], answer_tokens: int) -> int:
    """The most that a request may cost, with an answer of at most `answer_tokens`.

    A token is at least a byte long in every tokenizer of bytes, so the bytes of the request are a limit without one.
    """
    return len(json.dumps(request, ensure_ascii=False).encode("utf-8", "replace")) + _TEMPLATE_TOKENS + answer_tokens


def used_tokens(completion: Mapping[str, Any]) -> int | None:
    """The tokens that a completion says it cost; None if it does not say."""
    usage = completion.get("usage")
    if not isinstance(usage, dict):
        return None
    total = _count(usage.get("total_tokens"))
    parts = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
    if total is None and None in parts:
        return None
    return max(total or 0, sum(part or 0 for part in parts))


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


@dataclass
class TokenBudget:
    """Counts tokens; what a request may cost is reserved before it is sent, so that the limit is never exceeded.

    Used by many threads at once.

    Attributes:
        limit: Tokens at most; None: no limit.
        spent: Tokens of all answers, those from the disk too, and of requests that may have cost something.
        paid: The part of `spent` that was spent now.
    """

    limit: int | None = None
    spent: int = field(default=0, init=False)
    paid: int = field(default=0, init=False)
    _kept: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _reserved: int = field(default=0, init=False)
    _changed: threading.Condition = field(default_factory=threading.Condition, init=False, repr=False)

    def reserve(self, tokens: int) -> None:
        """Reserve tokens for a request. Waits for other requests if what they leave of their reservations may do.

        Raises:
            PromptError: The budget has no room for them.
        """
        with self._changed:
            while self.limit is not None and self.spent + self._reserved + tokens > self.limit:
                if not self._reserved:
                    raise PromptError(
                        f"prompts.token_budget ({self.limit} tokens) has no room for another request: {self.spent} are "
                        f"spent, and it may take {tokens}; raise the budget, or lower prompts.prompts_per_concept or "
                        "prompts.answer_tokens."
                    )
                self._changed.wait()
            self._reserved += tokens

    def settle(self, reserved: int, cost: int) -> None:
        """Replace a reservation by what the request has cost."""
        with self._changed:
            self._reserved -= reserved
            self.spent += cost
            self.paid += cost
            self._changed.notify_all()

    def count_kept(self, key: str, cost: int) -> None:
        """Count what a question has cost before, once: it is paid for, and part of what the sets cost."""
        with self._changed:
            self.spent += cost - self._kept.get(key, 0)
            self._kept[key] = cost
