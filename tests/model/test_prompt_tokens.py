from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import GenerationError
from model.prompt_tokens import cut_off, token_positions
from tests.support.tiny_models import build_clip_tokenizer

TOKENIZER = build_clip_tokenizer()


class CountingTokenizer:
    """The same tokenizer without offsets, as a slow one."""

    is_fast = False
    model_max_length = TOKENIZER.model_max_length

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": TOKENIZER(text, add_special_tokens=add_special_tokens)["input_ids"]}


def tokens_at(prompt: str, positions: list[int]) -> str:
    ids = TOKENIZER(prompt)["input_ids"]
    return (
        "".join(TOKENIZER.convert_ids_to_tokens([ids[position] for position in positions])).replace("</w>", " ").strip()
    )


@pytest.mark.parametrize(
    ("prompt", "phrase", "expected"),
    [
        ("a cat in a hat", "cat", [2]),
        ("a cat in a hat", "hat", [5, 6, 7]),
        ("a cat, a CAT!", "Cat", [2, 5]),
        ("a cats cat", "cat", [5]),
        ("a cat  in a hat", "cat in", [2, 3]),
        ("a [v] cat", "[v] cat", [2, 3, 4, 5]),
        ("a c\u0327at in", "\u00e7at", [2, 3, 4, 5]),  # "ç" decomposed, and composed
        ("a \u00e7at in", "c\u0327at", [2, 3, 4, 5]),
    ],
)
def test_token_positions(prompt: str, phrase: str, expected: list[int]) -> None:
    assert token_positions(TOKENIZER, prompt, phrase) == expected
    assert token_positions(CountingTokenizer(), prompt, phrase) == expected


@given(st.lists(st.text("abcint", min_size=1, max_size=3), max_size=30))
def test_what_is_read_and_what_is_cut_off_are_the_prompt(words: list[str]) -> None:
    prompt = " ".join(words)
    end = cut_off(TOKENIZER, prompt)
    assert prompt.endswith(end)
    read = TOKENIZER(prompt[: len(prompt) - len(end)])["input_ids"]
    assert (len(read) == TOKENIZER.model_max_length) if end else (len(read) <= TOKENIZER.model_max_length)
    assert bool(end) == (len(TOKENIZER(prompt)["input_ids"]) > TOKENIZER.model_max_length)


WORDS = st.lists(st.text("abcint", min_size=1, max_size=3), min_size=1, max_size=6)


@given(WORDS, st.data())
def test_positions_read_back_as_the_phrase(words: list[str], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first + 1, len(words)))
    prompt, phrase = " ".join(words), " ".join(words[first:last])
    positions = token_positions(TOKENIZER, prompt, phrase)
    if sum(words[i : i + last - first] == words[first:last] for i in range(len(words))) == 1:
        assert tokens_at(prompt, positions) == phrase
    assert positions == token_positions(CountingTokenizer(), prompt, phrase)


def test_absent_word_lists_the_words() -> None:
    with pytest.raises(GenerationError, match=r"'dog' is not in the prompt, whose words are: a, cat, in, hat\."):
        token_positions(TOKENIZER, "a cat in a hat.", "dog")
    with pytest.raises(GenerationError, match="the word is empty"):
        token_positions(TOKENIZER, "a cat", "  ")
    for tokenizer in (TOKENIZER, CountingTokenizer()):
        with pytest.raises(GenerationError, match="after the 24 tokens"):
            token_positions(tokenizer, "long " * 6 + "cat", "cat")
