"""A prompt in a tokenizer's tokens: where its words are, and which end of it a text encoder does not read."""

import threading
from collections.abc import Sequence
from typing import Any

from model.errors import GenerationError
from model.phrases import composed, phrase_pattern

#: Fast tokenizers keep padding and truncation as state, which a call in another thread would change.
TOKENIZING = threading.Lock()


def token_positions(tokenizer: Any, prompt: str, phrase: str) -> list[int]:
    """Positions in the encoded prompt (start token included) of all tokens of all occurrences of a phrase.

    An occurrence is as in `model.phrases`, in any Unicode normal form. Fast tokenizers give each token's position in
    the text; with a slow one the tokens before and in each occurrence are counted, as in the authors' code.

    Raises:
        GenerationError: the phrase is empty, not in the prompt, or only after the end that the text encoder reads.
    """
    prompt = composed(prompt)
    if not phrase.split():
        raise GenerationError("the word is empty.")
    spans = [match.span() for match in phrase_pattern(phrase).finditer(prompt)]
    if not spans:
        listed = ", ".join(_words(prompt)) or "none"
        raise GenerationError(f"the word {phrase!r} is not in the prompt, whose words are: {listed}.")
    find = _fast_positions if tokenizer.is_fast else _counted
    with TOKENIZING:
        positions = find(tokenizer, prompt, spans)
    if not positions:
        raise GenerationError(
            f"the word {phrase!r} comes after the {tokenizer.model_max_length} tokens of the prompt that are used."
        )
    return positions


def cut_off(tokenizer: Any, prompt: str) -> str:
    """The end of a prompt that a text encoder does not read; "" if it reads all."""
    prompt, length = composed(prompt), tokenizer.model_max_length
    with TOKENIZING:
        encoded = tokenizer(prompt, return_offsets_mapping=tokenizer.is_fast, verbose=False)
        _, last = _special_tokens(tokenizer)
    if len(encoded.input_ids) <= length:
        return ""
    if tokenizer.is_fast:
        (_, read), (start, _) = encoded["offset_mapping"][length - last - 1 : length - last + 1]
        return prompt[min(read, start) :].strip()  # the start is within a concept's placeholder
    return str(tokenizer.decode(encoded.input_ids[length - last : -last])).strip()


def _words(prompt: str) -> list[str]:
    return list(dict.fromkeys(word for word in (part.strip(".,;:!?\"'()") for part in prompt.split()) if word))


def _fast_positions(tokenizer: Any, prompt: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    encoded = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length, return_offsets_mapping=True)
    return [
        position
        for position, (start, end) in enumerate(encoded["offset_mapping"])
        if any(max(start, first) < min(end, last) for first, last in spans)
    ]


def _counted(tokenizer: Any, prompt: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    first, last = _special_tokens(tokenizer)
    limit = tokenizer.model_max_length - last
    positions = {
        position
        for start, end in spans
        for position in range(first + count(prompt[:start]), first + count(prompt[:end]))
        if position < limit
    }
    return sorted(positions)


def _special_tokens(tokenizer: Any) -> tuple[int, int]:
    """The number of special tokens before and after a text."""
    whole = tokenizer("a")["input_ids"]
    text = tokenizer("a", add_special_tokens=False)["input_ids"]
    before = next(start for start in range(len(whole)) if whole[start : start + len(text)] == text)
    return before, len(whole) - before - len(text)
