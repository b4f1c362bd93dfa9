"""A writer of small prompt sets, with settings that suit tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prompts.answer_store import AnswerStore
from prompts.client import ChatClient
from prompts.endpoint import Endpoint
from prompts.rate_limits import RateLimits
from prompts.schema import RichPrompt, Variation
from prompts.tokens import TokenBudget
from prompts.writer import PromptWriter, SetRequest

_ENDPOINT: dict[str, Any] = {"model": "stub", "timeout_seconds": 5.0, "retries": 2, "answer_tokens": 100}


@dataclass
class SmallWriter:
    """Asks a server for three prompts at a time; the settings are those of an endpoint."""

    url: str
    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    token_budget: int | None = None
    limits: RateLimits = field(default_factory=RateLimits)
    concurrency: int = 1
    max_similarity: float = 1.0
    client: ChatClient = field(init=False)

    def __post_init__(self) -> None:
        endpoint = Endpoint(base_url=self.url, **(_ENDPOINT | dict(self.settings)))
        budget = TokenBudget(self.token_budget)
        self.client = ChatClient(endpoint, AnswerStore(self.folder), budget, self.limits)

    def write(self, concept: str, count: int) -> list[RichPrompt]:
        """Prompts of the variation "background"."""
        return self.write_counts(concept, {"background": count})

    def write_counts(self, concept: str, counts: Mapping[Variation, int]) -> list[RichPrompt]:
        """Prompts of some variations."""
        writer = PromptWriter(self.client, 3, self.max_similarity, self.concurrency)
        (written,) = writer.write([SetRequest(concept=concept, counts=counts)])
        return written
