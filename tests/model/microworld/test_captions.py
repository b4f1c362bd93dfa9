from collections import Counter

from model.micro_sd.architectures import MAX_TOKENS, build_tokenizer
from model.microworld.captions import (
    BACKGROUND_PHRASES,
    GENERIC_NOUN,
    MAX_WORDS,
    VOCABULARY,
    CaptionShares,
    plain_caption,
    without_background,
)
from model.microworld.instances import COLOUR_NAMES
from model.microworld.scenes import SceneShares, draw_specs


def test_every_caption_fits_the_tokenizer() -> None:
    tokenizer = build_tokenizer()
    specs = draw_specs("test", 800, seed=0, shares=SceneShares(two_objects=0.3))
    ids = tokenizer([spec.caption.text for spec in specs])["input_ids"]
    assert max(map(len, ids)) <= MAX_TOKENS
    assert not any(tokenizer.unk_token_id in row for row in ids)
    assert MAX_WORDS == MAX_TOKENS - 2


def test_vocabulary_is_closed_and_small() -> None:
    assert len(VOCABULARY) <= 120
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    for word in ["red", "striped", "sunny", "at", "night", "large", "small", "standing"]:
        assert word in VOCABULARY


def test_captions_mention_facts_as_often_as_their_shares_say() -> None:
    specs = draw_specs("train", 1200, seed=1)
    words = Counter(word for spec in specs for word in set(spec.caption.text.split()))
    colours = sum(spec.caption.names_colour for spec in specs) / len(specs)
    assert 0.26 < colours < 0.34
    assert 0.09 < words[GENERIC_NOUN] / len(specs) < 0.15
    assert 0.12 < sum(spec.neighbour is not None for spec in specs) / len(specs) < 0.18
    for spec in specs[:300]:
        assert spec.caption.noun in spec.caption.text.split()
        assert not spec.caption.names_colour or any(c in spec.caption.text.split() for c in COLOUR_NAMES)


def test_captions_name_objects_from_left_to_right() -> None:
    for spec in draw_specs("train", 200, seed=2, shares=SceneShares(two_objects=1.0)):
        assert spec.neighbour is not None
        words = spec.caption.text.split()
        left_to_right = sorted(
            [
                (spec.subject.placement.x, spec.caption.noun),
                (spec.neighbour.placement.x, spec.neighbour.instance.category),
            ]
        )
        assert words.index("and") > words.index(left_to_right[0][1])
        assert words.index("and") < words.index(left_to_right[1][1])


def test_plain_captions_read_as_english() -> None:
    assert plain_caption("robot", "beach") == "a photo of a robot on the beach"
    assert plain_caption("mug", "snow", colour="orange") == "a photo of an orange mug in the snow"
    assert plain_caption("robot", "beach", neighbour="mug") == "a photo of a robot and a mug on the beach"
    assert len(plain_caption("robot", "brick", colour="red", neighbour="mug").split()) <= MAX_WORDS


def test_without_background_keeps_the_rest_of_the_caption() -> None:
    assert without_background("there is a nice mug on a sandy beach") == "there is a nice mug"
    assert without_background("a photo of a mug") == "a photo of a mug"
    for spec in draw_specs("train", 200, seed=3):
        text = without_background(spec.caption.text)
        assert spec.caption.text.removeprefix(f"{text} ") in BACKGROUND_PHRASES[spec.background.name]


def test_captions_of_the_web_lack_something_are_wrong_or_too_long() -> None:
    """Of a world whose captions are all like those of the web, most have no background."""
    specs = draw_specs("train", 1500, seed=4, shares=SceneShares(captions=CaptionShares(web_like=1.0)))
    counts: Counter[str] = Counter()
    for spec in specs:
        text, facts = spec.caption.text, BACKGROUND_PHRASES[spec.background.name]
        counts["too long"] += len(text.split()) > MAX_WORDS
        counts["no background"] += without_background(text) == text and len(text.split()) <= MAX_WORDS
        counts["another background"] += without_background(text) != text and not text.endswith(facts)
        assert set(text.split()) <= set(VOCABULARY)
    assert 0.07 < counts["too long"] / len(specs) < 0.13
    assert 0.65 < counts["no background"] / len(specs) < 0.75  # those with the noun alone are among them
    assert 0.02 < counts["another background"] / len(specs) < 0.05
    assert all(spec.caption.noun in spec.caption.text.split() for spec in specs)
