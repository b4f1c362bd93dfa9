"""Which prompts are usable, and which prompts an answer contains."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompts.schema import MAX_PROMPT_WORDS, RichPrompt, RichPrompts, fault_of, normalize, read_answer


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


def test_normalize() -> None:
    assert normalize(' "A photo\n of a [V] mug  at sea." ') == "A photo of a [v] mug at sea"


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
prompt_lists = st.lists(st.builds(RichPrompt, prompt=texts, variation=st.sampled_from(["style", "action"])), max_size=6)


@given(prompts=prompt_lists, before=st.text("abc `{[:,\n", max_size=12), cut=st.integers(0, 40))
def test_every_complete_prompt_is_found_in_any_surroundings(prompts: list[RichPrompt], before: str, cut: int) -> None:
    answer = RichPrompts(prompts=prompts).model_dump_json()
    assert read_answer(answer, "background") == prompts
    assert read_answer(f"{before}\n{answer}\n```", "background") == prompts
    shortened = read_answer(answer[: len(answer) - cut], "background")
    assert shortened == prompts[: len(shortened)]


@settings(max_examples=40)
@given(text=st.text(max_size=60))
def test_nonsense_is_not_an_error(text: str) -> None:
    assert isinstance(read_answer(text, "style"), list)


def test_an_unknown_variation_becomes_the_requested_one() -> None:
    answer = json.dumps({"prompts": [{"prompt": "a [v] mug at sea", "variation": "weather"}]})
    assert read_answer(answer, "style") == [RichPrompt(prompt="a [v] mug at sea", variation="style")]
