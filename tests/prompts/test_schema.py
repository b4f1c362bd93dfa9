"""Which prompts are usable, and their normal form."""

from __future__ import annotations

import pytest

from model.phrases import phrase_pattern
from prompts.schema import MAX_PROMPT_WORDS, PLACEHOLDER, fault_of, normalize, replace_named


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


#: Prompt and class word.
FOUND = {
    "at the start": ("[v] mug in the snow", "mug"),
    "at the end": ("in the snow a [v] mug", "mug"),
    "after a quote": ('the so-called "[v] mug" at sea', "mug"),
    "after a typographic quote": ("the “[v] mug” at sea", "mug"),
    "after an apostrophe": ("the '[v] mug' at sea", "mug"),
    "after a bracket": ("something old ([v] mug) at sea", "mug"),
    "after a square bracket": ("at sea [[v] mug] in rain", "mug"),
    "after a hyphen": ("a non-[v] mug at sea", "mug"),
    "after a dash": ("at sea\u2014[v] mug in the rain", "mug"),
    "after a slash": ("a cup/[v] mug at sea", "mug"),
    "after a comma without a space": ("at sea,[v] mug in rain", "mug"),
    "after an emoji": ("🌊[v] mug at sea", "mug"),
    "class word in upper case": ("A photo of a [v] Mug at sea", "mug"),
    "two words": ("([v] coffee mug) at sea", "coffee mug"),
    "accent of two characters": ("a [v] cafe\u0301 at sea", "caf\u00e9"),
    "Chinese": ("一只[v]狗在雪里", "狗"),
    "Chinese, with spaces": ("一只 [v] 狗 在 雪里", "狗"),
    "Chinese, after a comma": ("雪里\uff0c[v]狗。", "狗"),
    "Chinese, Latin class word": ("一只[v] mug在雪里", "mug"),
    "Japanese": ("雪の中の[v]犬です", "犬"),
    "katakana": ("「[v]ネコ」がいる", "ネコ"),
    "Thai": ("ภาพ[v]แมวในหิมะ", "แมว"),
    "Korean": ("눈 속의 [v] 개, 사진", "개"),
}
#: The same; the placeholder is glued to a word, or no class word follows.
NOT_FOUND = {
    "Latin letter before": ("a photo of x[v] mug at sea", "mug"),
    "digit before": ("a photo of 2[v] mug at sea", "mug"),
    "underscore before": ("a photo of _[v] mug at sea", "mug"),
    "Russian letter before": ("a photo of \u0438[v] mug at sea", "mug"),
    "accented letter before": ("a caf\u00e9[v] mug at sea", "mug"),
    "full-width letter before": ("a photo of \uff41[v] mug at sea", "mug"),
    "plural": ("two [v]s mug in the sea", "mug"),
    "no space before a Latin class word": ("a photo of a [v]mug at sea", "mug"),
    "hyphen before the class word": ("a photo of a [v]-mug at sea", "mug"),
    "possessive": ("the [v]'s mug at the sea", "mug"),
    "longer class word": ("a photo of a [v] mugs at sea", "mug"),
    "Chinese, another word": ("一只[v]猫在雪里", "狗"),
    "Chinese, Latin class word goes on": ("一只[v] muggle在雪里", "mug"),
    "Korean, within a word": ("눈 속의 [v] 무지개를 본다", "개"),
    "Korean particle after the class word": ("눈 속의 [v] 개를 본다", "개"),
}


@pytest.mark.parametrize(("prompt", "concept"), FOUND.values(), ids=FOUND)
def test_a_concept_is_named_where_placeholders_are_found(prompt: str, concept: str) -> None:
    prompt = normalize(prompt)
    assert fault_of(prompt, concept) is None
    assert phrase_pattern(PLACEHOLDER).search(prompt)
    assert PLACEHOLDER not in replace_named(prompt, concept, "cup")


@pytest.mark.parametrize(("prompt", "concept"), NOT_FOUND.values(), ids=NOT_FOUND)
def test_a_concept_is_not_named_elsewhere(prompt: str, concept: str) -> None:
    prompt = normalize(prompt)
    assert "must stand before" in str(fault_of(prompt, concept))
    assert replace_named(prompt, concept, "cup") == prompt


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        ("a photo of a mug", "must occur once"),
        ("[v]s and a [v] mug at sea", "must occur once"),
        ("a [v] mug and a [v] mug", "must occur once"),
        ("a photo of a [v] cup", "must stand before 'mug'"),
        ("a photo of a [v] red mug", "must stand before 'mug'"),
        ("a photo of a [v] muggle", "must stand before 'mug'"),
        ("a [v] mug", "says nothing"),
        ("a [v] mug " + "very " * MAX_PROMPT_WORDS, "longer than"),
        ("[v] mug" + "在雪里" * MAX_PROMPT_WORDS, "longer than"),
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
        ("a [v] cafe\u0301", "a [v] caf\u00e9"),
    ],
)
def test_normalize(prompt: str, normal: str) -> None:
    assert normalize(prompt) == normal
