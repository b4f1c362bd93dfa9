"""The schema of context-rich prompts, their validation, and the parser of a language model's answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Variation = Literal["background", "subject", "action", "style", "property"]

#: The ways in which prompts of one concept vary (Contextualizer, Sec. 3.3).
VARIATIONS: tuple[Variation, ...] = get_args(Variation)

PLACEHOLDER = "[v]"
MAX_PROMPT_WORDS = 40  # CLIP reads 77 tokens


class RichPrompt(BaseModel):
    """One prompt and its variation."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(description=f"the prompt, with {PLACEHOLDER} directly before the class word")
    variation: Variation


class RichPrompts(BaseModel):
    """A language model's answer to one request."""

    model_config = ConfigDict(extra="forbid")

    prompts: list[RichPrompt]


def normalize(prompt: str) -> str:
    """Remove line breaks, repeated spaces, quotes and the final full stop; put the placeholder in lower case."""
    text = " ".join(prompt.split()).strip("\"'` ").rstrip(". ")
    return re.sub(re.escape(PLACEHOLDER), PLACEHOLDER, text, flags=re.IGNORECASE)


def fault_of(prompt: str, concept: str) -> str | None:
    """Why a normalized prompt is not usable for `concept`; None if it is usable."""
    if prompt.count(PLACEHOLDER) != 1:
        return f"{PLACEHOLDER} must occur once"
    if not re.search(rf"(?<!\S){re.escape(PLACEHOLDER)} {re.escape(concept)}(?!\w)", prompt):
        return f"{PLACEHOLDER} must stand before {concept!r}"
    words = len(prompt.split())
    if words > MAX_PROMPT_WORDS:
        return f"longer than {MAX_PROMPT_WORDS} words"
    if words < len(concept.split()) + 3:
        return "says nothing but the concept"
    return None


def read_answer(text: str, variation: Variation) -> list[RichPrompt]:
    """The prompts in a model's answer.

    If the answer does not fit the schema (surrounding prose, a code fence, a cut-off end), the result is every complete
    object with a prompt and every string of a plain JSON list; strings get the requested `variation`.
    """
    try:
        return RichPrompts.model_validate_json(text).prompts
    except ValidationError:
        return list(_complete_prompts(text, variation))


def _complete_prompts(text: str, variation: Variation) -> Iterator[RichPrompt]:
    decoder = json.JSONDecoder()
    position = 0
    while (match := re.compile(r"[\[{]").search(text, position)) is not None:
        position = match.start() + 1
        try:
            value, end = decoder.raw_decode(text, match.start())
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict) and isinstance(value.get("prompt"), str):
            named = value.get("variation")
            yield RichPrompt(prompt=value["prompt"], variation=named if named in VARIATIONS else variation)
            position = end
        elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            yield from (RichPrompt(prompt=item, variation=variation) for item in value)
            position = end
