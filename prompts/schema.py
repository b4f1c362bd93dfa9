"""What a context-rich prompt is, and what is asked of a language model that writes some."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Variation = Literal["background", "subject", "action", "style", "property"]

#: Ways in which prompts of one concept may differ (Contextualizer, Sec. 3.3).
VARIATIONS: tuple[Variation, ...] = get_args(Variation)

PLACEHOLDER = "[v]"
MAX_PROMPT_WORDS = 40  # CLIP reads 77 tokens


class RichPrompt(BaseModel):
    """One prompt and what it varies."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(description=f"the prompt, with {PLACEHOLDER} directly before the class word")
    variation: Variation


class RichPrompts(BaseModel):
    """A language model's answer to one request."""

    model_config = ConfigDict(extra="forbid")

    prompts: list[RichPrompt]


def normalise(prompt: str) -> str:
    """One line, single spaces, no quotes or full stop around it, the placeholder in lower case."""
    text = " ".join(prompt.split()).strip("\"'` ").rstrip(". ")
    return re.sub(re.escape(PLACEHOLDER), PLACEHOLDER, text, flags=re.IGNORECASE)


def fault_of(prompt: str, concept: str) -> str | None:
    """Why a normalised prompt is of no use for `concept`; None when it is."""
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

    An answer to the schema is taken as a whole. Of anything else (prose around it, a code fence, a cut-off end) every
    complete object with a prompt is taken, and strings of a plain JSON list, which are of the variation that was asked
    for.
    """
    try:
        return RichPrompts.model_validate_json(text).prompts
    except ValidationError:
        return list(_scavenge(text, variation))


def _scavenge(text: str, variation: Variation) -> Iterator[RichPrompt]:
    decoder = json.JSONDecoder()
    place = 0
    while (match := re.compile(r"[\[{]").search(text, place)) is not None:
        place = match.start() + 1
        try:
            value, end = decoder.raw_decode(text, match.start())
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict) and isinstance(value.get("prompt"), str):
            named = value.get("variation")
            yield RichPrompt(prompt=value["prompt"], variation=named if named in VARIATIONS else variation)
            place = end
        elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            yield from (RichPrompt(prompt=item, variation=variation) for item in value)
            place = end
