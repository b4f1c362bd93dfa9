"""Which prompts are near-duplicates, and how diverse a set is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.similarity import DistinctPrompts, distinct_share, jaccard, mean_distance, ngrams_of

LIMIT = 0.65
BEACH = "a photo of a [v] dog running on the beach"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (BEACH, BEACH),
        (BEACH, "A Photo of a [v] dog running on the beach"),
        (BEACH, "a photo of a  [v] dog, running on the beach!"),
        (BEACH, "a photograph of a [v] dog running on the beach"),
        (BEACH, "the [v] dog runs along a beach"),
        (BEACH, "an image of one [v] dog running across the beaches"),
        (BEACH, "[v] dog run at the beach"),
        ("a [v] dog sitting on a chair", "a [v] dog sits on a chair"),
        ("a [v] dog chased by a cat", "a [v] dog chasing a cat"),
        ("a [v] dog next to a red ball", "a [v] dog beside the red ball"),
        ("a cat and a [v] dog asleep on a grey couch", "a cat with a [v] dog asleep on a grey couch"),
        (
            "a fluffy white cat and a [v] dog sleeping on a couch",
            "a fluffy white cat beside a [v] dog sleeping on a sofa",
        ),
        (
            "a [v] dog in a small boat on a calm lake at dawn",
            "a [v] dog in a small wooden boat on a calm lake at dawn",
        ),
        ("海辺の[v] dog", "海辺の [v] dog"),
    ],
)
def test_near_duplicates(one: str, other: str) -> None:
    distinct = DistinctPrompts("dog", LIMIT)
    assert distinct.add(one)
    assert not distinct.add(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (BEACH, "a photo of a [v] dog running in the snow"),
        (BEACH, "a photo of a [v] dog on the beach"),
        ("a [v] dog at the Eiffel Tower", "a [v] dog at the Louvre Museum"),
        ("a [v] dog on the beach", "a [v] dog on the beach at sunset"),
        ("a [v] dog chasing a cat", "a cat chasing a [v] dog"),
        ("a [v] dog wearing a red hat", "a [v] dog wearing a yellow hat"),
        ("an oil painting of a [v] dog", "a pencil sketch of a [v] dog"),
        ("a [v] dog next to a red ball in the park", "a [v] dog next to a blue ball in the park"),
        ("a [v] dog at place 0-0", "a [v] dog at place 0-1"),
        ("海辺の[v] dog", "山の上の[v] dog"),
        ("a glass [v] dog", "a glossy [v] dog"),
    ],
)
def test_different_prompts(one: str, other: str) -> None:
    distinct = DistinctPrompts("dog", LIMIT)
    assert distinct.add(one)
    assert distinct.add(other)


def test_a_limit_of_one_leaves_out_equal_texts_only() -> None:
    distinct = DistinctPrompts("dog", 1.0)
    assert [distinct.add(text) for text in (BEACH, BEACH.upper(), "the [v] dog runs along a beach")] == [
        True,
        False,
        True,
    ]


words = st.sampled_from(["[v]", "sea", "red", "cat", "run", "in", "hat"])
texts = st.lists(st.lists(words, max_size=6).map(" ".join), max_size=12)


@given(texts=texts, limit=st.sampled_from([0.0, 0.3, 0.65, 1.0]))
def test_the_index_finds_what_comparing_all_pairs_finds(texts: list[str], limit: float) -> None:
    distinct, kept = DistinctPrompts("mug", limit), list[str]()
    for text in texts:
        grams = ngrams_of(text, "mug")
        others = [ngrams_of(other, "mug") for other in kept]
        shared = [other for other in others if (grams & other) - {"[v]"}]
        expected = text not in kept and not any(jaccard(grams, other) > limit for other in shared)
        assert distinct.add(text) == expected
        kept += [text] if expected else []


def test_diversity_of_known_sets() -> None:
    assert distinct_share(["red cat", "red dog"], 1) == 3 / 4
    assert distinct_share(["red cat", "red cat"], 2) == 1 / 2
    assert distinct_share(["red"], 2) == 0
    assert mean_distance(["red cat", "red cat"], None) == 0
    assert mean_distance(["red cat", "blue sea"], None) == 1
    assert mean_distance(["red cat"], None) == 0
    many = [f"place {number}" for number in range(300)]  # more pairs than are compared
    assert mean_distance(many, None) == pytest.approx(1 - 1 / 5)
