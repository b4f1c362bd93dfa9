"""The settings of the stage `prompts`."""

from __future__ import annotations

import re
from dataclasses import field
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

from annotated_types import Ge, Le, MinLen
from pydantic import AfterValidator, model_validator
from pydantic.dataclasses import dataclass

from model.settings import STRICT, NonNegativeInt, PositiveFloat, PositiveInt, Share, Text, Words
from stages.prompts.quotas import counts_of
from stages.settings import DataLocation, Operation


def _checked_url(url: str) -> str:
    """The URL, if it can be the base URL of an OpenAI-compatible server.

    Raises:
        ValueError: It cannot; says why.
    """
    if re.match(r"https?://", url, re.IGNORECASE) is None:
        raise ValueError("it does not begin with http:// or https://")
    if wrong := re.search(r"[\s\\<>\"`{}|^#]|[^\x20-\x7e\w]", url):
        raise ValueError(f"it contains {wrong[0]!r}")
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("it contains a user or a password; the key belongs into OPENAI_API_KEY")
    if parts.netloc.endswith(":") or parts.port == 0:
        raise ValueError("it has no port behind the colon")
    if not _is_host(parts):
        raise ValueError("its host is no valid name or address")
    if secret := re.search(
        r"(?:^|&)([^&=]*(?:key|token|secret|password|signature|sig|auth)[^&=]*)=", parts.query, re.I
    ):
        raise ValueError(f"it contains a key, {secret[1]!r}; the key belongs into OPENAI_API_KEY")
    if re.search(r"/(chat|completions|responses|models)/?$", parts.path):
        raise ValueError("leave out what follows the version: the client adds /chat/completions")
    return url


def _is_host(parts: SplitResult) -> bool:
    try:
        host = (parts.hostname or "").encode("idna")  # the client encodes names in other scripts
    except UnicodeError:
        return False
    return re.fullmatch(rb"[\da-f:.]+" if "[" in parts.netloc else rb"[\w.-]+", host) is not None


BaseUrl = Annotated[Text, AfterValidator(_checked_url), Words("a URL that starts with http(s)://")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class QuotasConfig:
    """Prompts of each kind for a concept; null: an equal share of what the others leave."""

    background: NonNegativeInt | None = None
    subject: NonNegativeInt | None = None
    action: NonNegativeInt | None = None
    style: NonNegativeInt | None = None
    property: NonNegativeInt | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PromptsConfig:
    """Context-rich prompt sets from an OpenAI-compatible endpoint, or from a grammar when there is none."""

    concepts: Annotated[list[Text], MinLen(1)] = field(
        default_factory=lambda: ["toy", "ball", "box", "donut", "mushroom", "mug", "bottle", "duck"]
    )
    """Class words."""
    prompts_per_concept: PositiveInt = 200
    quotas: QuotasConfig = field(default_factory=QuotasConfig)
    tailored_concepts: list[Text] = field(default_factory=list)
    """Class words that also get a set whose contexts suit only them, for pictures with several subjects."""
    tailored_prompts: PositiveInt = 50
    """In each tailored set."""
    captions: NonNegativeInt = 0
    """The most captions of `filter` that the Contextualizer learns from as well; 0: none."""
    max_similarity: Share = 0.65
    """Prompts of a set that share more of their word uni- and bigrams (Jaccard) are near-duplicates: one goes."""
    grammar: Literal["micro", "english"] = "micro"
    """Where there is no endpoint: the micro world's, or English for any class word."""
    endpoint: BaseUrl | None = None
    """Base URL; the key is read from OPENAI_API_KEY; null: the grammar."""
    model: Text = "gpt-4o-mini"
    """Its name at the endpoint."""
    temperature: Annotated[float, Ge(0), Le(2)] = 1.0
    prompts_per_request: PositiveInt = 20
    answer_tokens: PositiveInt = 4096
    """Of one answer at most, with the model's reasoning."""
    token_budget: Operation[PositiveInt | None] = None
    """Tokens that the sets may cost, all runs together; never exceeded; null: no limit."""
    requests_per_minute: Operation[PositiveInt | None] = None
    """null: no limit."""
    tokens_per_minute: Operation[PositiveInt | None] = None
    """A request counts with the most that it may cost until its cost is known; null: no limit."""
    timeout_seconds: Operation[PositiveFloat] = 60.0
    """Of one try."""
    retries: Operation[NonNegativeInt] = 3
    """After the time that the server asks for, or growing waits."""
    concurrency: Operation[PositiveInt] = 4
    """Requests at once."""
    answers_folder: Operation[DataLocation | None] = None
    """Where answers are kept for all configurations; null: `answers` in the run folder."""

    @model_validator(mode="after")
    def _quotas_add_up(self) -> PromptsConfig:
        counts_of(self.quotas, self.prompts_per_concept)
        return self
