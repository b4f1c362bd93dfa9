"""What can be wrong with the words of a subject, found with a tokenizer alone, before any other model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from model.concepts.concept import ConceptError
from model.concepts.customization_settings import ConceptSubject, CustomizationSettings, Method
from model.concepts.ico import context_prompt
from model.concepts.placeholders import add_placeholders, check_placeholder
from model.concepts.training_prompts import check_lengths, reads_placeholder
from model.prompt_tokens import cut_off


def check_words(tokenizer: Any, placeholder: str, word: str, method: Method) -> None:
    """Check the placeholder and the class word of a subject.

    Raises:
        ConceptError: The tokenizer does not know the class word; the placeholder is a token already, or of DreamBooth,
            which uses it as a word, nothing that the tokenizer reads.
    """
    ids = tokenizer(word, add_special_tokens=False).input_ids
    if not ids or tokenizer.unk_token_id in ids:
        raise ConceptError(f"the class word {word!r} is not in the text encoder's vocabulary; choose a common noun.")
    if method != "dreambooth":
        check_placeholder(tokenizer, placeholder)
    elif not tokenizer(placeholder, add_special_tokens=False).input_ids:
        raise ConceptError(f"the text encoder reads nothing of the placeholder {placeholder!r}; choose a rare word.")


def check_prompts(tokenizer: Any, subject: ConceptSubject, settings: CustomizationSettings) -> list[str]:
    """Check the prompts of a subject's pictures; returns sentences on what the text encoder does not read of them.

    Args:
        tokenizer: As it is loaded, without the placeholder.
        subject: With its captions.
        settings: Of the customization.

    Raises:
        ConceptError: A caption does not name the subject; the placeholder is cut off, or ICO's prompt is too long.
    """
    with _placeholder(tokenizer, subject, settings):
        if settings.prompts == "ico":
            counts = settings.context_before, settings.context_after
            context_prompt(tokenizer, subject.placeholder, subject.word, *counts)
            return []
        return check_lengths(tokenizer, subject, settings.says_size)


def readable_prompts(
    tokenizer: Any, prompts: Sequence[str], subject: ConceptSubject, settings: CustomizationSettings
) -> tuple[list[str], list[str]]:
    """The context-rich prompts in which the text encoder reads the placeholder, and sentences on those cut off.

    Args:
        tokenizer: As it is loaded, without the placeholder.
        prompts: With the placeholder.
        subject: Has the placeholder.
        settings: Of the customization.
    """
    with _placeholder(tokenizer, subject, settings):
        ends = {prompt: end for prompt in prompts if (end := cut_off(tokenizer, prompt))}
        lost = {prompt for prompt in ends if not reads_placeholder(tokenizer, prompt, subject.placeholder)}
    kept = [prompt for prompt in prompts if prompt not in lost]
    if not ends:
        return kept, []
    example, end = next(iter(ends.items()))
    sentence = (
        f"the text encoder does not read the end of {len(ends)} context-rich prompts of the subject {subject.name}, "
        f"such as {end!r} of {example!r}"
    )
    without = f"; {len(lost)} are left out, in which {subject.placeholder!r} is cut off" if lost else ""
    return kept, [sentence + without]


@contextmanager
def _placeholder(tokenizer: Any, subject: ConceptSubject, settings: CustomizationSettings) -> Iterator[None]:
    """Within the block, the tokenizer knows the subject's placeholder, unless that is a word to it."""
    with ExitStack() as undo:
        if settings.method != "dreambooth":
            add_placeholders(tokenizer, {subject.placeholder: settings.vectors}, undo)
        yield
