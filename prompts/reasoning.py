"""The reasoning that a language model writes before its answer: it contains drafts, which are no prompts.

Servers that know a model put its reasoning into a field of its own; others leave it in the text, between marks that
differ from model to model.
"""

from __future__ import annotations

import re

_LESS, _GREATER = r"(?:<|&lt;|\uff1c|◁)", r"(?:>|&gt;|\uff1e|▷)"
_NEVER = "(?!)"
_STEMS = (
    "(?:think|thought)",
    "reason",
    "reflect",
    "analysis",
    "scratch",
    "monologue",
    "rationale",
    "deliberat",
    "draft",
)


def _tag(stem: str) -> tuple[str, str]:
    """`<think>` and the like: `</Thinking>`, `<think time="3">`, `<seed:think>`, `<|end_of_thought|>`, `◁/think▷`."""
    name = rf"[\w.:-]*?{stem}[\w.:-]*(?:\s[^<>]*?)?(?<!/)\s*\|?{_GREATER}"
    return rf"{_LESS}\|?\s*(?!/|end){name}", rf"{_LESS}\|?\s*(?:/|(?=end))\s*{name}"


#: What opens reasoning, and what closes it.
_MARKS = [
    *map(_tag, _STEMS),
    (r"\[THINK\]", r"\[/THINK\]"),  # Mistral
    (r"<\|channel\|>\s*(?!\s*final)\w+", r"<\|channel\|>\s*final[^<>]*(?:<\|message\|>)?"),  # gpt-oss, harmony format
    (r"\A\s*analysis(?=[A-Z])", "assistantfinal"),  # the same, without its special tokens
    (r"<\|channel>\s*(?!\s*final)\w+", r"<channel\|>"),  # Gemma
    ("<unused94>", "<unused95>"),  # MedGemma
    (r"here(?: is|'s) my thought process:", r"here(?: is|'s) my response:"),  # Granite
    (_NEVER, rf"{_LESS}\|?(?:begin_of_|start_)?(?:final_)?(?:answer|response|solution)\|?{_GREATER}"),
]
_PATTERNS = [re.compile(f"(?P<opens>{opens})|{closes}", re.IGNORECASE) for opens, closes in _MARKS]
#: Blocks whose closing mark also closes others: fences, and what Open WebUI writes.
_BLOCK = re.compile(
    r"```\s*(?:think|thought|reason)\w*\s*\n.*?(?:```|\Z)|<details\b[^<>]*\breasoning\b[^<>]*>.*?(?:</details>|\Z)",
    re.IGNORECASE | re.DOTALL,
)


def without_reasoning(text: str) -> str:
    """The text without the reasoning in it.

    Reasoning without an end goes to the end of the text: the answer was cut off. Reasoning without a beginning starts
    at the beginning of the text: chat templates write the opening mark into the request.
    """
    text = _BLOCK.sub("\n", text)
    for pattern in _PATTERNS:
        text = _without(pattern, text)
    return text


def _without(pattern: re.Pattern[str], text: str) -> str:
    kept: list[str] = []
    start, inside = 0, False
    for mark in pattern.finditer(text):
        if mark["opens"] is None:
            if not inside:
                kept.clear()
            inside, start = False, mark.end()
        elif not inside:
            kept.append(text[start : mark.start()])
            inside = True
    return "\n".join(kept if inside else [*kept, text[start:]])
