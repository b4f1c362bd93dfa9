"""The schema of context-rich prompts, and which prompts are usable."""

from __future__ import annotations

import html
import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from model.phrases import SPACELESS, composed, phrase_pattern

Variation = Literal["background", "subject", "action", "style", "property", "tailored"]

#: The ways in which the prompts of a set vary (Contextualizer, Sec. 4.1). The prompts of a tailored set have contexts
#: that suit only their concept (Sec. 5.3).
VARIATIONS: tuple[Variation, ...] = ("background", "subject", "action", "style", "property")
TAILORED: Variation = "tailored"

PLACEHOLDER = "[v]"
MAX_PROMPT_WORDS = 40  # CLIP reads 77 tokens

_WORD = rf"[^\W_{SPACELESS}]+"
#: A placeholder; a letter of a script without spaces; a word, compounds in one.
WORDS = re.compile(rf"\[v\]|[{SPACELESS}]|{_WORD}(?:[-'\u2019]{_WORD})*", re.IGNORECASE)


class RichPrompt(BaseModel):
    """One prompt and its variation."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(description=f"the prompt, with {PLACEHOLDER} directly before the class word")
    variation: Variation


class RichPrompts(BaseModel):
    """A language model's answer to one request."""

    model_config = ConfigDict(extra="forbid")

    prompts: list[RichPrompt]


#: Control characters, and halves of characters: neither can be stored as text. A line break or tab separates words.
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufeff\ufffd]")
_MARKDOWN_ESCAPE = re.compile(r"\\(?=[\[\]_*])")


def normalize(prompt: str) -> str:
    """Remove what is no text, escapes of Markdown and HTML, quotes around it, and the final full stop.

    The placeholder is put in lower case, the text in the normal form NFC.
    """
    text = composed(_NO_TEXT.sub(" ", _MARKDOWN_ESCAPE.sub("", html.unescape(prompt))))
    text = " ".join(text.split()).strip("\"'`“” ").rstrip(". ")
    return re.sub(re.escape(PLACEHOLDER), PLACEHOLDER, text, flags=re.IGNORECASE)


def fault_of(prompt: str, concept: str) -> str | None:
    """Why a normalized prompt is not usable for `concept`; None if it is usable."""
    if prompt.count(PLACEHOLDER) != 1:
        return f"{PLACEHOLDER} must occur once"
    if not _named(concept).search(prompt):
        return f"{PLACEHOLDER} must stand before {concept!r}"
    words = len(WORDS.findall(prompt))
    if words > MAX_PROMPT_WORDS:
        return f"longer than {MAX_PROMPT_WORDS} words"
    if words < len(WORDS.findall(concept)) + 3:
        return "says nothing but the concept"
    return None


def replace_named(prompt: str, concept: str, replacement: str) -> str:
    """The prompt with `replacement` for the placeholder and its class word."""
    return _named(concept).sub(lambda _: replacement, composed(prompt))


def _named(concept: str) -> re.Pattern[str]:
    """Finds the placeholder with its class word, where concepts are found in prompts."""
    return phrase_pattern(f"{PLACEHOLDER} {concept}")
