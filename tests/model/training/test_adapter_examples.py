"""The pictures of training examples against plain statements; see also `test_adapter_training.py`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from model.pictures.crops import crop_reference, square_crop
from model.pictures.decoding import load_picture
from model.pictures.tensors import to_tensor
from model.training.adapter_examples import ExamplePictures, PlanRow
from tests.support.tiny_examples import picture, rows

sources = pytest.mark.parametrize("reference_is_target", [False, True])


def small_rows(step: int) -> list[PlanRow]:
    return [row._replace(height=24, width=24) for row in rows(step)]


def shown_part(row: PlanRow) -> Image.Image:
    """The square of the reference's picture that a target would show."""
    reference = load_picture(picture(row.reference_id))
    return square_crop(reference, row.target_crop_x, row.target_crop_y, min(reference.size))


def make_pictures(reference_size: int, reference_is_target: bool = False) -> ExamplePictures:
    return ExamplePictures(
        rows=small_rows,
        picture=picture,
        reference_size=reference_size,
        tiles=2,
        reference_is_target=reference_is_target,
    )


def test_squares_and_crops_are_bytes() -> None:
    prepared = make_pictures(32).prepare(2, 0, 1)
    assert {name: array.dtype for name, array in prepared.items()} == {
        "target": np.uint8,
        "target_is_whole": np.bool_,
        "reference": np.uint8,
    }
    assert prepared["target_is_whole"].tolist() == [True, True, False, True]
    for slot, row in enumerate(rows(2)):
        square = square_crop(load_picture(picture(row.target_id)), row.target_crop_x, row.target_crop_y, 24)
        crop = crop_reference(shown_part(row), row.crop_ratio, row.crop_x, row.crop_y, 32)
        np.testing.assert_array_equal(prepared["target"][slot], np.asarray(square))
        np.testing.assert_array_equal(prepared["reference"][slot], np.asarray(crop))


@sources
def test_targets_that_are_not_needed_are_not_opened(reference_is_target: bool) -> None:
    whole = make_pictures(32, reference_is_target)
    opened: list[str] = []

    def open_noted(picture_id: str) -> bytes:
        opened.append(picture_id)
        return picture(picture_id)

    without = dataclasses.replace(whole, targets=False, picture=open_noted)
    found = without.prepare(2, 0, 1)
    assert found.keys() == {"reference"}
    np.testing.assert_array_equal(found["reference"], whole.prepare(2, 0, 1)["reference"])
    assert opened == [row.target_id if reference_is_target else row.reference_id for row in rows(2)]


@sources
def test_a_picture_large_enough_has_a_reference_for_the_tiles(reference_is_target: bool) -> None:
    assert make_pictures(16, reference_is_target).prepare(0, 0, 1)["reference"].shape == (4, 32, 32, 3)


def test_smaller_references_are_enlarged_beside_larger_ones() -> None:
    """Only the second row's reference is as large as the tiles together."""
    mixed = [row._replace(reference_id="large" if row.slot == 1 else row.reference_id) for row in rows(0)]
    feed = dataclasses.replace(make_pictures(32), rows=lambda step: mixed)
    found = torch.tensor(feed.prepare(0, 0, 1)["reference"]).permute(0, 3, 1, 2)
    assert found.dtype == torch.float32
    for row in mixed:
        size = 64 if row.slot == 1 else 32
        crop = crop_reference(shown_part(row), row.crop_ratio, row.crop_x, row.crop_y, size)
        small = to_tensor([crop])
        large = F.interpolate(small, (64, 64), mode="bicubic", antialias=True).clamp(0, 1)
        assert torch.equal(found[row.slot], (small if size == 64 else large)[0])


@pytest.mark.parametrize("place", [0.0, 0.3, 1.0])
def test_a_generic_reference_shows_what_its_target_shows(place: float) -> None:
    """Without a crop by Eq. 11 the two are one picture, wherever the target is cut from a wide one."""
    changes: dict[str, Any] = {"reference_id": "wide", "target_id": "wide", "crop_ratio": 1.0, "target_crop_x": place}
    own = [row._replace(**changes) for row in rows(0)]
    prepared = dataclasses.replace(make_pictures(32), rows=lambda step: own).prepare(0, 0, 1)
    np.testing.assert_array_equal(prepared["reference"], prepared["target"])
    expected = np.asarray(square_crop(load_picture(picture("wide")), place, 0.5, 32))
    np.testing.assert_array_equal(prepared["target"][0], expected)


def test_the_reference_of_a_bucket_is_the_middle_of_its_target() -> None:
    """The picture is 48 x 32 and so is the target; the reference is its central square."""
    own = [row._replace(reference_id="wide", target_id="wide", crop_ratio=1.0, width=48) for row in rows(0)]
    prepared = dataclasses.replace(make_pictures(32), rows=lambda step: own).prepare(0, 0, 1)
    assert prepared["target"].shape == (4, 32, 48, 3)
    assert prepared["target_is_whole"].all()
    np.testing.assert_array_equal(prepared["reference"], prepared["target"][:, :, 8:40])
