"""Placeholders are found where they are written and nowhere else."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

from model.backbone import Backbone
from model.concepts.concept import ConceptError
from model.concepts.loading import load_concept
from model.concepts.placeholders import add_placeholders, check_placeholder
from model.micro_sd.architectures import build_tokenizer
from tests.support.concepts import textual_inversion


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


FOUND = {
    "alone": ("[v]", "[v]", 1),
    "twice": ("[v]", "[v] in [v]", 2),
    "side by side": ("[v]", "[v][v]", 2),
    "upper case": ("[v]", "a [V] cat", 1),
    "mixed case placeholder": ("<MyCat>", "a <mycat> and <MyCat>", 2),
    "before punctuation": ("[v]", "[v], [v]. [v]! ([v])", 4),
    "possessive": ("[v]", "[v]'s hat", 1),
    "in a word": ("[v]", "x[v] [v]y [v]_1", 0),
    "a word": ("sks", "a sks cat", 1),
    "part of a word": ("sks", "risks asks sksa", 0),
    "a word with a hyphen": ("my-cat", "my-cat and my cat", 1),
    "several words": ("my cat", "my cat, mycat", 1),
    "with signs of expressions": ("(a+b)*", "(a+b)* aab", 1),
    "with a backslash": ("\\w", "\\w abc", 1),
    "not ASCII": ("café", "le café", 1),
    "decomposed": ("café", "le cafe\u0301", 1),
    "a decomposed placeholder": ("cafe\u0301", "le café", 1),
    "an emoji": ("🐈", "a 🐈 in", 1),
    "digits": ("v1", "v1 v10 v11", 1),
    "underscores": ("my_cat", "my_cat my_cats", 1),
    "stars": ("***", "a *** cat", 1),
    "beside each other, decomposed": ("cafe\u0301", "cafécafé café", 1),
    "within Chinese": ("[v]", "一只[v]狗", 1),
    "with a Korean particle": ("[v]", "[v]를", 1),
    "no placeholder": ("[v]", "a v cat [ v ]", 0),
}  # fmt: skip


@pytest.mark.parametrize(("placeholder", "prompt", "count"), FOUND.values(), ids=FOUND)
@pytest.mark.parametrize("vectors", [1, 2])
def test_a_placeholder_is_found_where_it_is_written(
    placeholder: str, prompt: str, count: int, vectors: int, sd: Backbone
) -> None:
    tokenizer, plain = sd.tokenizers[0], len(sd.tokenizers[0])
    load_concept(sd, textual_inversion(sd, placeholder, vectors))
    new = [index for index in tokenizer(prompt).input_ids if index >= plain]
    assert new == [plain + vector for vector in range(vectors)] * count


def test_a_placeholder_within_another_is_not_mistaken_for_it(sd: Backbone) -> None:
    first = len(sd.tokenizers[0])
    load_concept(sd, textual_inversion(sd, "<a"), textual_inversion(sd, "<a>"))
    assert [index for index in sd.tokenizers[0]("<a> <a").input_ids if index >= first] == [first + 1, first]


SIDE_BY_SIDE = {
    "brackets": ("[a][b]", [1, 2]),
    "in the other order": ("[b][a]", [2, 1]),
    "three": ("[a][b][a]", [1, 2, 1]),
    "a word after brackets": ("[a]sks", [3]),
    "brackets after a word": ("sks[a]", [3]),
    "a Chinese word": ("狗[a]狗[b]", [4, 1, 4, 2]),
    "within Chinese": ("一只[a]和[b]狗", [1, 2, 4]),
}


@pytest.mark.parametrize(("prompt", "expected"), SIDE_BY_SIDE.values(), ids=SIDE_BY_SIDE)
def test_placeholders_side_by_side(prompt: str, expected: list[int], sd: Backbone) -> None:
    before = len(sd.tokenizers[0]) - 1
    placeholders = ["[a]", "[b]", "sks", "狗"]
    load_concept(sd, *(textual_inversion(sd, placeholder) for placeholder in placeholders))
    ids = sd.tokenizers[0](prompt).input_ids
    assert [index - before for index in ids if index > before] == expected
    for number, placeholder in enumerate(placeholders, 1):
        if number in expected:
            assert {ids[position] - before for position in sd.token_positions(prompt, placeholder)} == {number}


def test_positions_of_a_placeholder_are_those_of_all_its_vectors(sd: Backbone) -> None:
    load_concept(sd, textual_inversion(sd, "[v]", 3))
    assert sd.token_positions("in [v] cat", "[v]") == [2, 3, 4]
    assert sd.token_positions("in [v] cat", "[v] cat") == [2, 3, 4, 5]


@pytest.mark.parametrize("placeholder", ["é", "e\u0301", "É", "E\u0301"])
def test_a_token_in_another_normal_form_is_a_token(placeholder: str) -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["é"])
    with pytest.raises(ConceptError, match="is a token already"):
        check_placeholder(tokenizer, placeholder)


@pytest.mark.parametrize(("placeholder", "prompt", "count"), [("[toy]", "a [toy] toy", 1), ("<x>", "x <x> <x>s", 1)])
def test_a_tokenizer_that_drops_punctuation(placeholder: str, prompt: str, count: int) -> None:
    """The micro world's."""
    tokenizer = build_tokenizer()
    plain = len(tokenizer)
    check_placeholder(tokenizer, placeholder)
    with ExitStack() as undo:
        ids = add_placeholders(tokenizer, {placeholder: 2}, undo)[placeholder]
        assert [index for index in tokenizer(prompt).input_ids if index >= plain] == ids * count
        assert (
            tokenizer(prompt.replace(placeholder, "")).input_ids
            == build_tokenizer()(prompt.replace(placeholder, "")).input_ids
        )
    assert len(tokenizer) == plain
    with pytest.raises(ConceptError, match="'toy' is a token already"):
        check_placeholder(tokenizer, "toy")
