"""Which prompts are usable, and their normal form."""

from __future__ import annotations

import pytest

from prompts.schema import MAX_PROMPT_WORDS, fault_of, normalize


@pytest.mark.parametrize(
    "prompt",
    [
        "a photo of a [v] mug at sea",
        "a [v] mug, wet and shiny",
        "two cats around a [v] mug",
        "a small [v] mug's shadow",
    ],
)
def test_usable_prompts(prompt: str) -> None:
    assert fault_of(prompt, "mug") is None


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        ("a photo of a mug", "must occur once"),
        ("a [v] mug and a [v] mug", "must occur once"),
        ("a photo of a [v] cup", "must stand before 'mug'"),
        ("a photo of a [v] red mug", "must stand before 'mug'"),
        ("a photo of a [v] muggle", "must stand before 'mug'"),
        ("a [v] mug", "says nothing"),
        ("a [v] mug " + "very " * MAX_PROMPT_WORDS, "longer than"),
    ],
)
def test_unusable_prompts(prompt: str, fault: str) -> None:
    assert fault in str(fault_of(prompt, "mug"))


@pytest.mark.parametrize(
    ("prompt", "normal"),
    [
        (' "A photo\n of a [V] mug  at sea." ', "A photo of a [v] mug at sea"),
        (r"a \[v\] mug\_1 &amp; a spoon", "a [v] mug_1 & a spoon"),
        ("a [v] mug\x00 at\u0085\ud83d sea\ufeff", "a [v] mug at sea"),
        ("“a [v] mug at sea”", "a [v] mug at sea"),
    ],
)
def test_normalize(prompt: str, normal: str) -> None:
    assert normalize(prompt) == normal
