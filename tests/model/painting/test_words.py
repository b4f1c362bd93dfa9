"""Words for pictures that nobody has named: which are possible, and which of them the micro CLIP finds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from PIL import Image

from model.guidance.settings import InferenceSettings
from model.micro_sd.shipped_adapter import find_shipped_model
from model.micro_sd.weights import WEIGHTS_FOLDER
from model.microworld.scenes import SceneShares, draw_specs, render_scenes
from model.microworld.shapes import TRAINED_CATEGORIES
from model.painting.painter import RequestPainter
from model.painting.request import RequestFieldError
from model.painting.words import WordFinder, possible_words
from model.scoring.metrics import ClipScorer
from tests.support.local_painters import encoded


@pytest.fixture(scope="module")
def finder() -> WordFinder:
    return WordFinder(ClipScorer.of_backbone(WEIGHTS_FOLDER, "clip"))


@pytest.mark.parametrize(
    ("prompt", "taken", "pictures", "expected"),
    [
        ("a toy in the jungle", [], 1, ["toy"]),
        ("A photo of a small red MUG, on the beach", [], 1, ["MUG"]),
        ("a dog wearing a hat in the snow", [], 1, ["dog", "hat"]),
        ("a dog wearing a hat in the snow", ["dog"], 1, ["hat"]),
        ("a dog in the snow", [], 2, ["dog", "snow"]),
        ("on the beach", [], 1, ["beach"]),
        ("a [v] cat beside a tree", ["[v] cat"], 1, ["tree"]),
        ("my mother's teddy-bear under a tree with a kite", [], 1, ["mother's", "teddy-bear", "kite"]),
        ("ein Bär im Café", [], 1, ["ein", "Bär", "im", "Café"]),
        ("a cat and a cat", [], 1, ["cat"]),
        ("a photo of the", [], 1, []),
    ],
)
def test_possible_words(prompt: str, taken: Sequence[str], pictures: int, expected: list[str]) -> None:
    assert possible_words(prompt, taken, pictures=pictures) == expected


def a_picture(category: str) -> Image.Image:
    shares = SceneShares(two_objects=0)
    return Image.fromarray(render_scenes(draw_specs("test", 1, 0, categories=[category], shares=shares), 64)[0].image)


@pytest.mark.parametrize("category", TRAINED_CATEGORIES[:6])
def test_the_word_of_a_picture(finder: WordFinder, category: str) -> None:
    other = next(name for name in TRAINED_CATEGORIES if name != category)
    prompt = f"a {other} and a {category} in the snow"
    assert finder.find(prompt, [a_picture(category)]) == [category]
    assert finder.find(prompt, [a_picture(category), a_picture(other)]) == [category, other]


def test_too_few_words(finder: WordFinder) -> None:
    with pytest.raises(RequestFieldError, match="cannot be found") as error:
        finder.find("a photo of a mug", [a_picture("mug")] * 2)
    assert error.value.field == "word"


def test_a_request_without_words() -> None:
    shipped = find_shipped_model()
    painter = RequestPainter(
        pipeline=shipped.load(),
        settings=InferenceSettings(steps=2, mask_steps=1),
        title=None,
        adapter="",
        clip=shipped.load_clip,
    )
    mug, hat = ({"picture": encoded(a_picture(category))} for category in ("mug", "hat"))
    prepared = painter.prepare("a hat and a mug in the snow", [mug, hat])
    assert prepared.words == ["mug", "hat"]
    assert [made.word for made in prepared.pictures[0].provenance.subjects] == ["mug", "hat"]
    assert painter.prepare("a hat and a mug", [{**mug, "word": "hat"}, hat]).words == ["hat", "mug"]
    assert painter.prepare("a hat and a mug", [mug], use_mask=False).words == [None]
    painter.clip = None
    del painter.__dict__["_word_finder"]
    with pytest.raises(RequestFieldError, match="is not said"):
        painter.prepare("a hat and a mug", [mug])
