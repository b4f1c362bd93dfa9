"""The settings of the stage `prompts`."""

from __future__ import annotations

import re
from dataclasses import field
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from annotated_types import Ge, Le, MinLen
from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from model.settings import STRICT, NonNegativeInt, PositiveFloat, PositiveInt, Text, Words
from stages.settings import Operation


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
class PromptsConfig:
    """Context-rich prompt sets from an OpenAI-compatible endpoint, or from the grammar when there is none."""

    concepts: Annotated[list[Text], MinLen(1)] = field(
        default_factory=lambda: ["toy", "ball", "box", "donut", "mushroom", "mug", "bottle", "duck"]
    )
    """Class words."""
    prompts_per_concept: PositiveInt = 200
    endpoint: BaseUrl | None = None
    """Base URL; the key is read from OPENAI_API_KEY; null: the grammar."""
    model: Text = "gpt-4o-mini"
    """Its name at the endpoint."""
    temperature: Annotated[float, Ge(0), Le(2)] = 1.0
    prompts_per_request: PositiveInt = 20
    timeout_seconds: Operation[PositiveFloat] = 60.0
    """Of one try."""
    retries: Operation[NonNegativeInt] = 3
    concurrency: Operation[PositiveInt] = 4
    """Requests at once."""
