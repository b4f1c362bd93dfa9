"""The prompts in the text of a language model's answer."""

from __future__ import annotations

import contextlib
import html
import json
import re
from collections.abc import Iterator
from typing import Any

from prompts.lenient_json import values_in
from prompts.reasoning import without_reasoning
from prompts.schema import PLACEHOLDER, VARIATIONS, RichPrompt, Variation, normalize

#: Fields of prompts that the model has decided against.
_NO_PROMPTS = re.compile("reason|think|thought|analysis|draft|reject|discard|avoid|bad|invalid|negative", re.IGNORECASE)

_LISTED = re.compile(r"\s*(?:[-*•\u2013]|\(?\d+[.):])\s+(?:\**\s*prompt[\s\d]*:\s*)?(\S.*)", re.IGNORECASE)
_MAX_OTHER_LINES = 2  # around a list in plain text: more of them is reasoning


def read_answer(text: str, variation: Variation) -> list[RichPrompt]:
    """The prompts in a model's answer; those without a valid variation get the requested one.

    If the answer is not JSON from beginning to end, reasoning is dropped, and JSON is looked for in the rest. Without
    any, the answer may be a list in plain text.
    """
    text = text.strip("\ufeff\u200b \n\r\t")
    if not _is_json(text):
        text = without_reasoning(text)
    try:
        return _prompts_in(text, variation) or list(_listed_prompts(text, variation))
    except RecursionError:  # hundreds of brackets inside one another
        return []


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _prompts_in(text: str, variation: Variation) -> list[RichPrompt]:
    found = [prompt for value in values_in(text) for prompt in _prompts_of(value, variation)]
    return found or [prompt for value in values_in(_decoded(text)) for prompt in _prompts_of(value, variation)]


def _decoded(text: str) -> str:
    """The text of JSON that is written as a JSON string, or escaped as HTML."""
    with contextlib.suppress(ValueError):
        text = str(json.loads(text if text.startswith('"') else f'"{text}"', strict=False))
    return html.unescape(text)


def _prompts_of(value: object, variation: Variation) -> Iterator[RichPrompt]:
    if isinstance(value, list):
        for item in value:
            yield from _prompts_of(item, variation)
    elif isinstance(value, dict):
        yield from _prompts_of_object({str(name).strip(): item for name, item in value.items()}, variation)
    elif isinstance(value, str):
        nested = _prompts_in(value, variation) if value.lstrip().startswith(("{", "[{", '["')) else []
        yield from nested or [_prompt(value, variation)]


def _prompts_of_object(members: dict[str, Any], variation: Variation) -> Iterator[RichPrompt]:
    lower = {name.lower(): item for name, item in members.items()}
    variation = _variation(lower.get("variation"), variation)
    field = next((name for name in ("prompts", "prompt") if name in lower), None)
    if field is not None:
        yield from _prompts_of(lower[field], variation)
        return
    for name, item in members.items():
        if _is_prompt(name):  # {"a [v] mug at sea": "background"}
            yield _prompt(name, _variation(item, variation))
        elif not _NO_PROMPTS.search(name) and (isinstance(item, dict | list) or _is_prompt(item)):
            yield from _prompts_of(item, _variation(name, variation))  # {"background": [...]}, {"1": "..."}


def _listed_prompts(text: str, variation: Variation) -> Iterator[RichPrompt]:
    """The items of a list in plain text, if they are all prompts and there is hardly any other text."""
    lines = [line for line in text.splitlines() if line.strip(" `*-_")]
    items = [match[1] for line in lines if (match := _LISTED.fullmatch(line))]
    if all(map(_is_prompt, items)) and len(lines) - len(items) <= _MAX_OTHER_LINES:
        yield from (_prompt(item.strip("*_ "), variation) for item in items)


def _prompt(text: str, variation: Variation) -> RichPrompt:
    # JSON's escapes are UTF-16: two may be one character, and a single half is none.
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")
    return RichPrompt(prompt=whole, variation=variation)


def _is_prompt(value: object) -> bool:
    return isinstance(value, str) and PLACEHOLDER in normalize(value)


def _variation(value: object, requested: Variation) -> Variation:
    return next((name for name in VARIATIONS if name == str(value).strip().lower()), requested)
