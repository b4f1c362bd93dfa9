"""The prompts of a subject's pictures: templates, and captions as people write them."""

from __future__ import annotations

import pytest

from model.concepts.concept import ConceptError
from model.concepts.training_prompts import SIMPLE_PROMPTS, check_lengths, class_prompts, picture_prompts, size_words
from tests.support.customization import make_subject
from tests.support.tiny_models import build_clip_tokenizer

#: Word, placeholder, caption -> the prompt.
CAPTIONS = [
    ("cat", "[v]", "a cat on a sofa", "a [v] cat on a sofa"),
    ("cat", "[v]", "a [v] cat on a sofa", "a [v] cat on a sofa"),
    ("cat", "[v]", "[v], sleeping", "[v], sleeping"),
    ("cat", "[V]", "a [v] cat", "a [v] cat"),
    ("cat", "[v]", "A Cat in the sun", "A [v] Cat in the sun"),
    ("cat", "[v]", "CAT", "[v] CAT"),
    ("cat", "[v]", "a cat and another cat", "a [v] cat and another cat"),
    ("cat", "[v]", "the category of a cat", "the category of a [v] cat"),
    ("cat", "[v]", "my cat's bed", "my [v] cat's bed"),
    ("cat", "[v]", "a black-and-white cat.", "a black-and-white [v] cat."),
    ("cat", "[v]", "(cat)", "([v] cat)"),
    ("cat", "sks", "a sks cat that risks", "a sks cat that risks"),
    ("cat", "sks", "a cat that risks", "a sks cat that risks"),
    ("teddy bear", "<t>", "a teddy bear in a box", "a <t> teddy bear in a box"),
    ("teddy bear", "<t>", "bear and Teddy Bear", "bear and <t> Teddy Bear"),
    ("teddy bear", "<t>", "a teddy\nbear", "a <t> teddy\nbear"),
    ("teddy bear", "<t>", "a teddy  bear", "a <t> teddy  bear"),
    ("café", "[v]", "the café at night", "the [v] café at night"),
    ("café", "[v]", "the cafe\u0301 at night", "the [v] café at night"),
    ("C++ mug", "$1", "a C++ mug (new)", "a $1 C++ mug (new)"),
    ("mug", "\\1", "a mug", "a \\1 mug"),
    ("猫", "[v]", "沙发上的 猫", "沙发上的 [v] 猫"),
    ("cat", "[v]", "cat_bed and a cat", "cat_bed and a [v] cat"),
    ("cat", "[v]", " cat ", " [v] cat "),
]


@pytest.mark.parametrize(("word", "placeholder", "caption", "prompt"), CAPTIONS, ids=[c[2] for c in CAPTIONS])
def test_captions(word: str, placeholder: str, caption: str, prompt: str) -> None:
    subject = make_subject(placeholder, word=word, captions=(caption,) * 3)
    assert picture_prompts(subject) == [[prompt]] * 3


@pytest.mark.parametrize("caption", ["", "a dog", "concatenate", "cats", "[v", "v", "c a t"])
def test_a_caption_must_name_the_subject(caption: str) -> None:
    subject = make_subject(captions=("a cat", caption, "a cat"))
    with pytest.raises(ConceptError, match=r"caption .* has neither '\[v\]' nor the class word 'cat'"):
        picture_prompts(subject)


def test_templates() -> None:
    prompts = picture_prompts(make_subject())
    assert prompts == [[prompt.format("[v] cat") for prompt in SIMPLE_PROMPTS]] * 3


def test_class_prompts() -> None:
    assert class_prompts(make_subject()) == ["a photo of a cat"] * 2
    assert class_prompts(make_subject(class_prompts=("a cat in", "cat"))) == ["a cat in", "cat"]


#: Words, placeholder, class word -> prompts of the first and the third template.
SIZED = [
    ("", "[v]", "cat", "a photo of a [v] cat", "a close photo of a [v] cat"),
    ("a far away", "[v]", "cat", "a far away photo of a [v] cat", "a far away photo of a [v] cat"),
    ("very small", "[v]", "cat", "very small photo of a [v] cat", "very small photo of a [v] cat"),
    ("zoomed in", "<t>", "teddy bear", "zoomed in photo of a <t> teddy bear", "zoomed in photo of a <t> teddy bear"),
    ("close up", "{}", "a cat", "close up photo of a {} a cat", "close up photo of a {} a cat"),
]


@pytest.mark.parametrize(("words", "placeholder", "word", "first", "third"), SIZED, ids=[one[0] for one in SIZED])
def test_words_for_the_size(words: str, placeholder: str, word: str, first: str, third: str) -> None:
    for listed in picture_prompts(make_subject(placeholder, word=word), words):
        assert (listed[0], listed[2]) == (first, third)


@pytest.mark.parametrize("words", size_words(sized=True))
def test_a_caption_gets_no_words(words: str) -> None:
    subject = make_subject(captions=("a cat far away",) * 3)
    assert picture_prompts(subject, words) == [["a [v] cat far away"]] * 3


def test_the_words_count_for_the_length() -> None:
    """Of the tiny encoder's tokens: the placeholder is cut off behind the words alone."""
    tokenizer, subject = build_clip_tokenizer(), make_subject("cat")
    room = len(tokenizer("a close photo of a cat", add_special_tokens=False).input_ids) + 2
    tokenizer.model_max_length = room
    check_lengths(tokenizer, subject, sized=False)
    with pytest.raises(ConceptError, match="'a far away"):
        check_lengths(tokenizer, subject, sized=True)
