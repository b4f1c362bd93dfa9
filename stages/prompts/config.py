"""The settings of the stage `prompts`."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from annotated_types import Ge, Le, MinLen
from pydantic.dataclasses import dataclass

from model.settings import STRICT, NonNegativeInt, PositiveFloat, PositiveInt, Text
from stages.settings import Operation, Url


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PromptsConfig:
    """Context-rich prompt sets from an OpenAI-compatible endpoint, or from the grammar when there is none."""

    concepts: Annotated[list[Text], MinLen(1)] = field(
        default_factory=lambda: ["toy", "ball", "box", "donut", "mushroom", "mug", "bottle", "duck"]
    )
    """Class words."""
    prompts_per_concept: PositiveInt = 200
    endpoint: Url | None = None
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
