"""The prompts of a customization's pictures: fixed templates, captions, or the learned contexts of ICO."""

from __future__ import annotations

import textwrap
from typing import Any

from model.concepts.concept import ConceptError
from model.concepts.customization_settings import ConceptSubject
from model.phrases import composed, phrase_pattern
from model.prompt_tokens import cut_off

#: Context-simple prompts (Contextualizer, Sec. 4); {} is the concept.
SIMPLE_PROMPTS = ("a photo of a {}", "a picture of a {}", "a close photo of a {}", "a photo of the {}")

#: For a picture that Custom Diffusion's augmentation made small or large; the authors' words.
SMALL_WORDS = ("a far away", "very small")
LARGE_WORDS = ("zoomed in", "close up")

_SHOWN = 60  # characters of a prompt in a message


def size_words(sized: bool) -> tuple[str, ...]:
    """What prompts may say of a picture's size, if they do; "": nothing."""
    return ("", *SMALL_WORDS, *LARGE_WORDS) if sized else ("",)


def picture_prompts(subject: ConceptSubject, words: str = "") -> list[list[str]]:
    """The prompts that each picture of a subject may get: of templates, or its caption.

    Args:
        subject: With its captions.
        words: For the picture's size, in front of a template. A caption already describes its picture and stays.

    Raises:
        ConceptError: A caption does not name the subject, or their number is not that of the pictures.
    """
    if subject.captions is None:
        named = f"{subject.placeholder} {subject.word}"
        return [[_sized(prompt, words).format(named) for prompt in SIMPLE_PROMPTS]] * len(subject.pictures)
    if len(subject.captions) != len(subject.pictures):
        raise ConceptError(
            f"the subject {subject.name} has {len(subject.captions)} captions for {len(subject.pictures)} pictures: "
            "one for each is needed."
        )
    return [[_with_placeholder(caption, subject)] for caption in subject.captions]


def _sized(template: str, words: str) -> str:
    """Words replace the article, as in "very small photo of a {}", and what the template says of the size."""
    return f"{words} {template.removeprefix('a ').removeprefix('close ')}" if words else template


def check_lengths(tokenizer: Any, subject: ConceptSubject, sized: bool) -> list[str]:
    """Sentences on the prompts of a subject's pictures whose end the text encoder does not read.

    Args:
        tokenizer: Knows the placeholder.
        subject: With its captions.
        sized: Whether templates get words for the size.

    Raises:
        ConceptError: The placeholder is in the end that is not read; see also `picture_prompts`.
    """
    found = []
    prompts = [listed for words in size_words(sized) for listed in picture_prompts(subject, words)]
    for prompt in dict.fromkeys(prompt for listed in prompts for prompt in listed):
        if not (end := cut_off(tokenizer, prompt)):
            continue
        named = f"the prompt {textwrap.shorten(prompt, _SHOWN, placeholder=' ...')!r} of the subject {subject.name}"
        if not reads_placeholder(tokenizer, prompt, subject.placeholder):
            raise ConceptError(
                f"{named} is longer than the {tokenizer.model_max_length} tokens that the text encoder reads, and "
                f"{subject.placeholder!r} is cut off: shorten the caption, or take fewer vectors."
            )
        found.append(f"the text encoder does not read the end of {named}: {end!r}")
    return found


def reads_placeholder(tokenizer: Any, prompt: str, placeholder: str) -> bool:
    """Whether all tokens of a placeholder are in the part of a prompt that the text encoder reads."""
    needed = tokenizer(placeholder, add_special_tokens=False).input_ids
    read = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
    return set(needed) <= set(read)


def _with_placeholder(caption: str, subject: ConceptSubject) -> str:
    """The caption with the placeholder before the class word, if it is not there."""
    caption = composed(caption)
    if phrase_pattern(subject.placeholder).search(caption):
        return caption
    named, count = phrase_pattern(subject.word).subn(
        lambda found: f"{subject.placeholder} {found[0]}", caption, count=1
    )
    if not count:
        raise ConceptError(
            f"the caption {caption!r} of the subject {subject.name} has neither {subject.placeholder!r} nor the class "
            f"word {subject.word!r}: write one of them where it names the subject."
        )
    return named


def class_prompts(subject: ConceptSubject) -> list[str]:
    """The prompt of each class picture.

    Raises:
        ConceptError: Their number is not that of the class pictures.
    """
    if not subject.class_prompts:
        return [f"a photo of a {subject.word}"] * len(subject.class_pictures)
    if len(subject.class_prompts) != len(subject.class_pictures):
        raise ConceptError(
            f"the subject {subject.name} has {len(subject.class_prompts)} class prompts for "
            f"{len(subject.class_pictures)} class pictures: one for each is needed."
        )
    return list(subject.class_prompts)
