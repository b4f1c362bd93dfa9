"""Pictures of different requests in one batch, previews, and both methods."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.adapters.adapter import VisualAdapter
from model.adapters.realcustom import RealCustomAdapter
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.painting.painter import RequestPainter
from model.painting.request import PaintedPicture, RequestFieldError, preview_steps
from tests.support.local_painters import half_mask, noise_picture, tiny_painter

PROMPT = "a cat in a hat"
CAT = {"picture": noise_picture(1), "word": "cat"}
HAT = {"picture": noise_picture(2), "word": "hat"}


@pytest.fixture(scope="module")
def painter(sd_folder: Path) -> RequestPainter:
    return tiny_painter(sd_folder)


def pixels(painted: PaintedPicture) -> bytes:
    return Image.open(io.BytesIO(painted.picture)).tobytes()


def distance(one: PaintedPicture, other: PaintedPicture) -> float:
    """The mean difference of two pictures' values."""
    pairs = list(zip(pixels(one), pixels(other), strict=True))
    return sum(abs(a - b) for a, b in pairs) / len(pairs)


def test_a_picture_does_not_depend_on_its_batch(painter: RequestPainter) -> None:
    requests: list[dict[str, Any]] = [
        {"subjects": [CAT]},
        {"subjects": [CAT, HAT], "seeds": [3]},
        {"subjects": [{**CAT, "mask": half_mask()}]},
        {"subjects": []},
        {"subjects": [CAT], "size": (48, 32)},
        {"subjects": [CAT], "negative_prompt": "hat"},
        {"subjects": [HAT], "steps": 2},
    ]
    pictures = [painter.prepare(PROMPT, **request).pictures[0] for request in requests]
    assert distance(*painter.paint([painter.prepare(PROMPT, seeds=[seed]).pictures[0] for seed in (0, 1)])) > 1
    together, alone = painter.paint(pictures), [painter.paint([picture])[0] for picture in pictures]
    for one, other in zip(together, alone, strict=True):
        assert distance(one, other) < 0.2  # of 255: batches of other sizes round differently
        assert (one.mask is None) == (other.mask is None)


def test_previews_are_of_their_own_picture(painter: RequestPainter) -> None:
    with_previews = painter.prepare(PROMPT, [CAT], [1], steps=8, previews=2).pictures[0]
    without = painter.prepare(PROMPT, [CAT], [2], steps=8).pictures[0]
    running = [painter.start(request) for request in (without, with_previews)]
    shown: list[list[PaintedPicture]] = [[], []]
    while not running[0].is_finished:
        painter.step(running)
        for own, picture in zip(shown, running, strict=True):
            own += [preview] if (preview := painter.preview(picture)) is not None else []
    assert [len(own) for own in shown] == [0, 2]
    assert all(preview.mask is not None for preview in shown[1])
    painted, last = [painter.finish(picture) for picture in running], shown[1][-1]
    assert distance(last, painted[1]) < distance(last, painted[0])
    assert painted[0].batch_size == 2


@pytest.mark.parametrize(
    ("steps", "previews", "expected"),
    [
        (25, 0, ()),
        (25, 1, (7,)),
        (25, 3, (2, 9, 16)),
        (3, 3, (0, 1)),
        (4, 3, (0, 1, 2)),
        (1, 3, ()),
        (2, 1, (0,)),
        (4, 2, (0, 1)),
    ],
)
def test_the_first_preview_comes_within_a_third(steps: int, previews: int, expected: tuple[int, ...]) -> None:
    found = preview_steps(steps, previews)
    assert found == expected
    assert not found or found[0] <= max(0, steps // 3)
    assert steps - 1 not in found


@pytest.mark.parametrize("method", [RealCustomAdapter, RealCustomPlusAdapter])
def test_the_image_guidance_scale_is_realcustoms(sd_folder: Path, method: type[VisualAdapter]) -> None:
    own = tiny_painter(sd_folder, method)
    if method is RealCustomPlusAdapter:
        with pytest.raises(RequestFieldError, match="realcustom") as error:
            own.prepare(PROMPT, [CAT], image_guidance_scale=1.0)
        assert error.value.field == "image_guidance_scale"
        return
    weak, strong = (own.prepare(PROMPT, [CAT], image_guidance_scale=scale).pictures[0] for scale in (0.0, 8.0))
    assert pixels(own.paint([weak])[0]) != pixels(own.paint([strong])[0])


def test_what_is_cut_off_of_a_prompt_is_said_or_refused(painter: RequestPainter) -> None:
    long = PROMPT + " cat" * 100
    assert painter.prepare(PROMPT).cut_off == ""
    assert painter.prepare(long).cut_off.endswith("cat cat")
    with pytest.raises(RequestFieldError, match=r"would leave out 'cat cat.*shorten it"):
        painter.prepare(long, whole_prompt=True)


def test_a_picture_that_comes_again_is_not_encoded_again(sd_folder: Path) -> None:
    own = tiny_painter(sd_folder)
    own.cache_encodings(10_000_000)
    assert own.pipeline.image_encoders is not None
    cache = own.pipeline.image_encoders.cache
    first, again = (own.paint(own.prepare(PROMPT, [subject]).pictures)[0] for subject in (CAT, {**CAT}))
    assert (cache.misses, cache.hits) == (1, 1)
    assert pixels(first) == pixels(again)
    other = own.paint(own.prepare(PROMPT, [{**HAT, "word": "cat"}]).pictures)[0]
    assert (cache.misses, cache.hits) == (2, 1)
    assert pixels(other) != pixels(first)


@pytest.mark.parametrize("mark", [True, False])
def test_pictures_previews_and_masks_are_marked_as_generated(painter: RequestPainter, mark: bool) -> None:
    asked = painter.prepare(PROMPT, [CAT], previews=1, mark_generated=mark).pictures
    files: list[bytes | None] = []
    running = painter.start(asked[0])
    while not running.is_finished:
        painter.step([running])
        if preview := painter.preview(running):
            files += (preview.picture, preview.mask)
    painted = painter.finish(running)
    files += (painted.picture, painted.mask)
    assert [b"digitalsourcetype/trainedAlgorithmicMedia" in (file or b"") for file in files] == [mark] * 4
