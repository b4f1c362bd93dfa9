"""The prompts of the two branches and their tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.backbone import Backbone
from model.dci.auxiliary_nouns import COMMON_NOUNS, NOUNS_BY_CONTEXT, likely_nouns
from model.dci.prompts import BranchPrompts
from model.dci.settings import DCISettings
from model.errors import GenerationError
from model.micro_sd.architectures import build_tokenizer
from tests.support.tiny_models import MAX_TOKENS, build_clip_tokenizer


class OnlyTokenizer(Backbone):
    """A backbone of which nothing but a tokenizer is used."""

    device = torch.device("cpu")

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        tokenizer.model_max_length = max_tokens
        self.tokenizers = [tokenizer]


@pytest.fixture(scope="module")
def clip() -> Backbone:
    return OnlyTokenizer(build_clip_tokenizer(), MAX_TOKENS)


def branches(backbone: Backbone, prompt: str, concept: str, **settings: Any) -> BranchPrompts:
    return BranchPrompts.of(backbone, [prompt], DCISettings(concept=concept, **settings))


#: Prompt, concept, noun, auxiliary prompt.
PROMPTS = [
    ("a [v] dog in a hat", "[v] dog", "cat", "a cat in a hat"),
    ("a photo of a sks dog", "sks dog", "cat", "a photo of a cat"),
    ("<v> toy", "<v> toy", "cat", "cat"),
    ("<a> <b> <c> toy in ice", "<a> <b> <c> toy", "cat", "cat in ice"),
    ("a S* cat, in oil", "S* cat", "dog", "a dog, in oil"),
    ("[v] at sea", "[v]", "dog", "dog at sea"),
    ("a [V] Dog in ice", "[v] dog", "cat", "a cat in ice"),
    ("a  [v]   dog  in ice", "[v] dog", "cat", "a  cat  in ice"),
    ("[v] dog and [v] dog", "[v] dog", "cat", "cat and cat"),
    ("a dog's [v] mug", "[v] mug", "cat", "a dog's cat"),
    ("[v] dog-house", "[v] dog", "cat", "cat-house"),
    ("a [v] dog. cats", "[v] dog", "cat", "a cat. cats"),
    ("[v] toy on a cat", "[v] toy", "big dog", "big dog on a cat"),
    ("my [v] \\1 toy", "[v] \\1 toy", "cat", "my cat"),
    ("(a [v] toy:1.2)", "[v] toy", "cat", "(a cat:1.2)"),
    ("a dog and a [v] dog", "[v] dog", "cat", "a dog and a cat"),
]


@pytest.mark.parametrize(("prompt", "concept", "noun", "expected"), PROMPTS, ids=[case[0] for case in PROMPTS])
def test_auxiliary_prompt(prompt: str, concept: str, noun: str, expected: str, clip: Backbone) -> None:
    found = branches(clip, prompt, concept, auxiliary_noun=noun)
    assert (found.concept, found.auxiliary, found.nouns) == ([prompt], [expected], [noun])
    concept_tokens, auxiliary_tokens = found.tokens(clip)
    tokenizer = clip.tokenizers[0]
    for own, content, text, phrase, inside in (
        (concept_tokens.own, concept_tokens.content, prompt, concept, True),
        (auxiliary_tokens.own, auxiliary_tokens.content, expected, noun, False),
    ):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert own[0].nonzero().flatten().tolist() == list(range(1, 1 + len(ids)))
        of_phrase = content[0] if inside else own[0] & ~content[0]
        spans = set(clip.token_positions(text, phrase))
        assert set(of_phrase.nonzero().flatten().tolist()) == spans
        assert not (content & ~own).any()


#: Prompt, concept, settings, what the message names.
REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("a cat in a hat", "[v] dog", {}, "whose words are: a, cat, in, hat"),
    ("a dog [v]", "[v] dog", {}, r"'\[v\] dog' is not in the prompt"),
    ("a [v] dogs", "[v] dog", {}, "is not in the prompt"),
    ("a [v] dog", "[v] dog", {"auxiliary_noun": "dog"}, "'dog' is the noun of the concept"),
    ("a [v] dog", "[v] dog", {"auxiliary_noun": "Dogs"}, "'Dogs' is the noun of the concept"),
    ("a [v] dog", "[v] dog", {"auxiliary_noun": "big dog"}, "'big dog' is the noun"),
    ("a [v] dog", "[v] dog", {"auxiliary_noun": "[v]  DOG"}, "is the noun"),
    ("a [v] dog on a cat", "[v] dog", {"auxiliary_noun": "cat"}, "'cat' is in the prompt already"),
    ("a Cat on a [v] dog", "[v] dog", {"auxiliary_noun": "cat"}, "'cat' is in the prompt already"),
    ("a [v] dog", "[v] dog", {"auxiliary_noun": "猫"}, "'猫' is not in the backbone's vocabulary"),
    ("a [v] dog", "[v] dog", {"ablation": "no_entire_prompt"}, "nothing but the concept"),
    ("[v] dog!", "[v] dog", {"ablation": "no_entire_prompt"}, "nothing but the concept"),
    ("a very very long long one of a [v] dog", "[v] dog", {}, "after the 24 tokens"),
]


@pytest.mark.parametrize(("prompt", "concept", "settings", "message"), REFUSED, ids=[str(case[:3]) for case in REFUSED])
def test_refused(prompt: str, concept: str, settings: dict[str, Any], message: str, clip: Backbone) -> None:
    with pytest.raises(GenerationError, match=message):
        branches(clip, prompt, concept, **settings).tokens(clip)


def test_a_prompt_that_is_cut_off_has_the_tokens_that_are_left(clip: Backbone) -> None:
    concept, auxiliary = branches(clip, "a [v] dog in the very long grass", "[v] dog").tokens(clip)
    assert concept.own.sum() == auxiliary.own.sum() == 22
    assert not concept.own[0, -1]


#: Prompt, concept, the context alone.
CONTEXTS = [
    ("[v] shoes carved from ice", "[v] shoes", "carved from ice"),
    ("a [v] dog in snow", "[v] dog", "in snow"),
    ("a photo of a [v] dog in snow", "[v] dog", "a photo in snow"),
    ("the [v] dog, at sea", "[v] dog", ", at sea"),
    ("oil art of [v] dog", "[v] dog", "oil art"),
]


@pytest.mark.parametrize(("prompt", "concept", "context"), CONTEXTS, ids=[case[0] for case in CONTEXTS])
def test_without_the_entire_prompt(prompt: str, concept: str, context: str, clip: Backbone) -> None:
    found = branches(clip, prompt, concept, ablation="no_entire_prompt")
    assert (found.concept, found.auxiliary) == ([concept], [context])
    tokens_c, tokens_a = found.tokens(clip)
    assert (tokens_c.own == tokens_c.content).all()
    assert (tokens_a.own == tokens_a.content).all()


#: Context, concept's noun, the noun that is chosen.
LIKELY = [
    ("painted on a house", "tortoise plushy", "cat"),
    ("in Times Square", "cat", "car"),
    ("in Times Square", "car", "dog"),
    ("on the beach", "dog", "car"),
    ("at the Eiffel tower", "cars", "dog"),
    ("swimming in a pool", "dog", "duck"),
    ("on a wooden table", "cat", "mug"),
    ("somewhere", "toy", "dog"),
    ("somewhere", "dog", "cat"),
    ("", "dog", "cat"),
    ("with a dog", "toy", "cat"),
]


@pytest.mark.parametrize(("context", "noun", "expected"), LIKELY, ids=[str(case[:2]) for case in LIKELY])
def test_the_noun_by_context(context: str, noun: str, expected: str) -> None:
    longer = OnlyTokenizer(build_clip_tokenizer(), 77)
    assert branches(longer, f"a {noun} {context}", noun).nouns == [expected]


@pytest.mark.parametrize(
    ("context", "noun", "expected"),
    [("on the beach", "robot", "car"), ("in the ocean", "mug", "duck"), ("in the forest", "house", "mushroom")],
)
def test_the_micro_world_has_a_noun_for_each_context(context: str, noun: str, expected: str) -> None:
    """A closed vocabulary: there is no dog."""
    micro = OnlyTokenizer(build_tokenizer(), 16)
    assert branches(micro, f"a {noun} {context}", noun).nouns == [expected]
    with pytest.raises(GenerationError, match="'dog' is not in the backbone's vocabulary"):
        branches(micro, f"a {noun} {context}", noun, auxiliary_noun="dog")


def test_every_context_has_common_nouns_behind_its_own() -> None:
    for names, nouns in NOUNS_BY_CONTEXT:
        for name in names.split():
            assert tuple(likely_nouns(f"in the {name}"))[-len(COMMON_NOUNS) :] == COMMON_NOUNS
            assert set(nouns) <= set(likely_nouns(f"in the {name}"))
