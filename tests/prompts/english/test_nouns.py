"""Articles and numbers of class words."""

from __future__ import annotations

import pytest

from prompts.english.nouns import Number, article, number_of, without_placeholder


@pytest.mark.parametrize(
    "words",
    [
        "an apple", "an umbrella", "a unicorn", "a university", "an hour", "an honest man", "an heir", "a UFO",
        "an MP3 player", "an SUV", "an LED lamp", "an x-ray", "a T-shirt", "a one-eyed cat",
        "a uniform", "a user", "an usher", "a utensil", "a eucalyptus tree", "a ewe", "a NASA cap",
        "an 8-ball", "an 18-wheeler", "a 100-year-old tree", "an iPhone", "an emu", "an éclair", "a ukulele",
        "a euro", "a LEGO brick", "an FBI agent", "an underwater camera", "an orange ball",
    ],
)  # fmt: skip
def test_articles(words: str) -> None:
    assert article(words.partition(" ")[2]) == words


@pytest.mark.parametrize(
    ("noun", "number"),
    [
        *(
            (noun, "singular")
            for noun in ("dog", "glass", "dress", "bus", "lens", "walrus", "octopus", "person", "gas")
        ),
        *(
            (noun, "singular")
            for noun in ("stuffed animal", "bowl of berries", "pair of shoes", "tennis ball", "chess")
        ),
        *((noun, "singular") for noun in ("woman with glasses", "wine glass", "iris", "qwertz", "éclair", "is")),
        *((noun, "pair") for noun in ("glasses", "pink sunglasses", "combat boots", "jeans", "scissors", "headphones")),
        *((noun, "plural") for noun in ("grapes", "people", "children", "cookies", "Lego bricks", "toys", "geese")),
        *((noun, "mass") for noun in ("bread", "jewelry", "sushi", "garden furniture")),
    ],
)
def test_numbers(noun: str, number: Number) -> None:
    assert number_of(noun) == number


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("a photo of a [v] mug at sea", "a photo of a mug at sea"),
        ("a [v] umbrella at sea", "an umbrella at sea"),
        ("An [v] unicorn", "A unicorn"),
        ("a red [v] umbrella and an apple", "a red umbrella and an apple"),
        ("a pair of [v] glasses", "a pair of glasses"),
        ('a photo of a "[v] umbrella" at sea', 'a photo of an "umbrella" at sea'),
        ("something ([v] mug) at sea", "something (mug) at sea"),
        ("一只[v]狗在雪里", "一只狗在雪里"),
        ("no placeholder on a apple", "no placeholder on a apple"),
    ],
)
def test_a_prompt_without_its_placeholder_has_the_right_article(prompt: str, plain: str) -> None:
    assert without_placeholder(prompt) == plain
