"""The completions that OpenAI-compatible servers send, in all their shapes: their text, or why there is none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from prompts.errors import one_line

_NO_ANSWER = re.compile("think|reason|image|audio|video|tool|refusal|redact", re.IGNORECASE)
_CUT_OFF = ("length", "max_tokens")
_TEXT_FIELDS = ("text", "content", "value", "output_text", "json")


def text_of(completion: Mapping[str, Any]) -> str:
    """The text of a completion's first choice, or the arguments of its function call.

    Fields and chunks of reasoning are left out. Content may be a text, chunks of one, or JSON that the server has read.
    """
    choice = first_choice(completion)
    message = choice.get("message") or choice.get("delta") or {}
    if not isinstance(message, dict):
        return _joined(message)
    calls = message.get("tool_calls") or []
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    arguments = [item.get("arguments") for item in [*functions, message.get("function_call")] if isinstance(item, dict)]
    parts = [message.get("content"), message.get("parsed"), choice.get("text"), *arguments]
    return next((text for part in parts if (text := _joined(part)).strip()), "")


def first_choice(completion: Mapping[str, Any]) -> dict[str, Any]:
    """The first choice of a completion, with no fields if there is none."""
    choices = completion.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}


def why_empty(completion: Mapping[str, Any], text: str) -> str:
    """Why there is no prompt in a completion whose text is `text`."""
    choice = first_choice(completion)
    message = choice.get("message")
    refusal = message.get("refusal") if isinstance(message, dict) else None
    reason = choice.get("finish_reason")
    if refusal and not text:
        return f"the model refuses: {one_line(str(refusal))}"
    ending = f", which ended with finish_reason {reason!r}" if reason in (*_CUT_OFF, "content_filter") else ""
    if reason in _CUT_OFF:
        ending += " (prompts.answer_tokens)"
    shown = one_line(text, 80)
    return f"no prompts in the answer {shown!r}{ending}" if shown else f"the answer is empty{ending}"


def _joined(content: object) -> str:
    """The text of a message's content, whatever its shape."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(map(_joined, content))
    if not isinstance(content, dict) or _NO_ANSWER.search(str(content.get("type", ""))):
        return ""
    field = next((name for name in _TEXT_FIELDS if name in content), None)
    if field is not None:
        return _joined(content[field])
    return "" if "type" in content else json.dumps(content)
