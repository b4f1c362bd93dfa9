"""The views of pictures: mirrored, cropped, the same whatever the batch."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from model.backbone import Backbone
from model.concepts.picture_latents import PictureLatents, View
from model.concepts.resizing import Resized
from model.pictures.tensors import to_tensor
from model.seeding import generator_of
from tests.support.customization import picture
from tests.support.tiny_models import RESOLUTION


@pytest.fixture
def latents(sd: Backbone) -> PictureLatents:
    return PictureLatents(sd, [picture(0), picture(1)])


def encoded(backbone: Backbone, pixels: Tensor) -> Tensor:
    return backbone.encode_pictures(pixels[None] * 2 - 1)


def test_whole_and_mirrored_pictures(sd: Backbone, latents: PictureLatents) -> None:
    pixels = [to_tensor(Image.open(io.BytesIO(picture(number)))) for number in range(2)]
    views = [View(1), View(0, flipped=True), View(1)]
    expected = torch.cat([encoded(sd, one) for one in (pixels[1], pixels[0].flip(-1), pixels[1])])
    torch.testing.assert_close(latents.latents(views), expected)
    assert torch.equal(latents.latents([View(1)])[0], latents.latents(views)[2])


def test_a_crop_fills_the_square(sd: Backbone, latents: PictureLatents) -> None:
    image = Image.open(io.BytesIO(picture(0))).crop((3, 2, 3 + 24, 2 + 24))
    wanted = to_tensor(image.resize((RESOLUTION, RESOLUTION), Image.Resampling.BICUBIC))
    found = latents.latents([View(0, False, top=2, left=3, side=24)])
    torch.testing.assert_close(found, encoded(sd, wanted), rtol=0.02, atol=0.02)


@given(seed=st.integers(0, 10_000), flip=st.floats(0, 1), crop=st.floats(0.5, 1))
def test_views_stay_inside(seed: int, flip: float, crop: float) -> None:
    latents = PictureLatents.__new__(PictureLatents)
    latents.side = RESOLUTION
    view = latents.draw(0, flip, crop, generator_of(seed))
    assert view == latents.draw(0, flip, crop, generator_of(seed))
    if crop == 1:
        assert view.side is None
    else:
        assert view.side is not None
        assert round(crop * RESOLUTION) <= view.side <= RESOLUTION
        assert min(view.top, view.left) >= 0
        assert max(view.top, view.left) + view.side <= RESOLUTION


def test_the_share_of_mirrored_pictures(latents: PictureLatents) -> None:
    flips = [latents.draw(0, 0.3, 1.0, generator_of(seed)).flipped for seed in range(500)]
    assert sum(flips) / 500 == pytest.approx(0.3, abs=0.07)
    assert not any(latents.draw(0, 0.0, 1.0, generator_of(seed)).flipped for seed in range(50))
    assert all(latents.draw(0, 1.0, 1.0, generator_of(seed)).flipped for seed in range(50))


RESIZED = {
    "smaller": (Resized(20, top=4, left=10, words=""), slice(4, 24), slice(10, 30)),
    "larger": (Resized(40, top=-5, left=-8, words=""), slice(0, 32), slice(0, 32)),
}


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(("resized", "rows", "columns"), RESIZED.values(), ids=RESIZED)
def test_resized_pictures(
    sd: Backbone, latents: PictureLatents, resized: Resized, rows: slice, columns: slice, flipped: bool
) -> None:
    """The mirrored picture lies at the same place, where its loss counts."""
    image = Image.open(io.BytesIO(picture(1)))
    turned = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else image
    scaled = to_tensor(turned.resize((resized.side, resized.side), Image.Resampling.BICUBIC))
    top, left = max(-resized.top, 0), max(-resized.left, 0)
    wanted = torch.full((3, RESOLUTION, RESOLUTION), 0.5)
    wanted[:, rows, columns] = scaled[:, top : top + RESOLUTION, left : left + RESOLUTION]
    found = latents.latents([View(1, flipped, resized=resized)])
    torch.testing.assert_close(found, encoded(sd, wanted), rtol=0.02, atol=0.02)
    assert not torch.equal(found, latents.latents([View(1, flipped)]))
