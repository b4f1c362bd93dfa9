"""Aspect buckets, phases and SDXL's size conditioning, against plain statements."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.pictures.crops import covering_box
from model.training.target_sizes import (
    MAX_ASPECT_RATIO,
    Phase,
    PictureSize,
    TargetSizes,
    aspect_buckets,
    nearest_buckets,
    phases_of,
    resolution_at,
    time_ids,
)

#: Pictures (width, height) and their buckets (width, height) at 1024 pixels, multiples of 64.
CHOSEN = {
    "square": ((1024, 1024), (1024, 1024)),
    "tiny square": ((9, 9), (1024, 1024)),
    "large square": ((6000, 6000), (1024, 1024)),
    "nearly square": ((1000, 1024), (1024, 1024)),
    "photograph 4:3": ((4032, 3024), (1152, 896)),
    "photograph 3:4": ((3024, 4032), (896, 1152)),
    "photograph 3:2": ((6000, 4000), (1216, 832)),
    "photograph 2:3": ((4000, 6000), (832, 1216)),
    "5:4": ((1280, 1024), (1152, 896)),
    "video 16:9": ((1920, 1080), (1344, 768)),
    "video upright": ((1080, 1920), (768, 1344)),
    "old television": ((640, 480), (1152, 896)),
    "wide film": ((2048, 858), (1600, 640)),
    "phone 9:21": ((1080, 2520), (640, 1600)),
    "banner": ((728, 90), (2048, 512)),
    "panorama": ((12000, 2000), (2048, 512)),
    "upright panorama": ((2000, 12000), (512, 2048)),
    "a line": ((1000, 1), (2048, 512)),
    "odd sides": ((1237, 811), (1216, 832)),
    "odd and upright": ((333, 501), (832, 1216)),
    "a thumbnail": ((150, 84), (1344, 768)),
    "passport": ((413, 531), (896, 1152)),
    "exactly 4:1": ((4000, 1000), (2048, 512)),
    "A4": ((2480, 3508), (832, 1216)),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_pictures_and_their_buckets(name: str) -> None:
    (width, height), (across, down) = CHOSEN[name]
    buckets = aspect_buckets(1024, 64)
    (number,) = nearest_buckets([height], [width], buckets)
    assert buckets[number] == (down, across)
    distances = [abs(math.log(bucket.height / bucket.width) - math.log(height / width)) for bucket in buckets]
    assert distances[number] == pytest.approx(min(distances))


@pytest.mark.parametrize(("resolution", "multiple"), [(1024, 64), (512, 64), (768, 64), (64, 8), (32, 8), (8, 8)])
def test_a_bucket_is_as_large_as_the_resolution_allows(resolution: int, multiple: int) -> None:
    buckets = aspect_buckets(resolution, multiple)
    assert PictureSize(resolution, resolution) in buckets
    assert {size[::-1] for size in buckets} == set(buckets)
    ratios = [height / width for height, width in buckets]
    assert ratios == sorted(set(ratios))
    for height, width in buckets:
        assert height % multiple == width % multiple == 0
        assert height * width <= resolution**2 < (max(height, width) + multiple) * min(height, width)
        assert max(ratios) <= MAX_ASPECT_RATIO


def test_a_resolution_between_the_multiples_is_refused() -> None:
    with pytest.raises(ValueError, match="resolution 500 is no multiple of 64"):
        aspect_buckets(500, 64)


@pytest.mark.parametrize(
    ("steps", "first_resolution", "share", "expected"),
    [
        (100, None, 0.5, [(0, 1024)]),
        (100, 512, 0.5, [(0, 512), (50, 1024)]),
        (3, 512, 0.5, [(0, 512), (2, 1024)]),
        (100, 512, 0.0, [(0, 1024)]),
        (100, 512, 1.0, [(0, 512)]),
        (1, 512, 0.1, [(0, 1024)]),
        (160_000, 512, 0.75, [(0, 512), (120_000, 1024)]),
    ],
)
def test_phases(steps: int, first_resolution: int | None, share: float, expected: list[tuple[int, int]]) -> None:
    phases = phases_of(steps, 1024, first_resolution, share)
    assert [(phase.first_step, phase.resolution) for phase in phases] == expected
    for step in {0, steps // 2 - 1, steps // 2, steps - 1} - {-1}:
        assert resolution_at(phases, step) == [side for first, side in expected if first <= step][-1]


def test_the_sizes_of_a_step_are_its_phase_s() -> None:
    sizes = TargetSizes(phases=(Phase(0, 512), Phase(7, 1024)))
    assert (sizes.of(6), sizes.of(7)) == ([(512, 512)], [(1024, 1024)])
    buckets = TargetSizes(phases=sizes.phases, bucket_multiple=64)
    assert (buckets.of(0), buckets.of(9)) == (aspect_buckets(512, 64), aspect_buckets(1024, 64))


#: Original (height, width), target (height, width), position (x, y), and the expected top and left.
PLACED = {
    "square from square": ((1024, 1024), (1024, 1024), (0.3, 0.8), (0, 0)),
    "larger square": ((3000, 3000), (1024, 1024), (0.3, 0.8), (0, 0)),
    "small square, enlarged": ((200, 200), (1024, 1024), (1.0, 1.0), (0, 0)),
    "left of a wide one": ((1024, 2048), (1024, 1024), (0.0, 0.5), (0, 0)),
    "right of a wide one": ((1024, 2048), (1024, 1024), (1.0, 0.5), (0, 1024)),
    "middle of a wide one": ((1024, 2048), (1024, 1024), (0.5, 0.5), (0, 512)),
    "the height has no travel": ((1024, 2048), (1024, 1024), (0.5, 1.0), (0, 512)),
    "bottom of a tall one": ((2048, 1024), (1024, 1024), (0.5, 1.0), (1024, 0)),
    "reduced to a half": ((2048, 4096), (1024, 1024), (1.0, 0.0), (0, 1024)),
    "4:3 in its bucket": ((3024, 4032), (896, 1152), (0.5, 0.5), (0, 21)),
    "panorama in its bucket": ((2000, 12000), (512, 2048), (0.5, 0.5), (0, 512)),
    "tiny": ((1, 2), (64, 64), (1.0, 0.0), (0, 64)),
}


@pytest.mark.parametrize("name", PLACED)
def test_time_ids(name: str) -> None:
    original, target, (x, y), (top, left) = PLACED[name]
    found = time_ids(PictureSize(*original), PictureSize(*target), x, y)
    assert found == [*original, top, left, *target]


@given(
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    st.sampled_from(aspect_buckets(1024, 64)),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_the_crop_of_the_time_ids_is_the_one_that_is_made(
    original: tuple[int, int], target: PictureSize, x: float, y: float
) -> None:
    """Within the pixels that a pixel of the picture becomes."""
    _, _, top, left, _, _ = time_ids(PictureSize(*original), target, x, y)
    box = covering_box((original[1], original[0]), (target.width, target.height), x, y)
    scale = max(target.height / original[0], target.width / original[1])
    assert (left / scale, top / scale) == pytest.approx(box[:2], abs=1.5 + 1 / scale)


@given(st.tuples(st.integers(1, 900), st.integers(1, 900)), st.tuples(st.integers(1, 99), st.integers(1, 99)))
def test_the_covering_box_is_the_largest_of_its_ratio(picture: tuple[int, int], shape: tuple[int, int]) -> None:
    left, top, right, bottom = covering_box(picture, shape, 0.4, 0.7)
    assert 0 <= left < right <= picture[0]
    assert 0 <= top < bottom <= picture[1]
    width, height = right - left, bottom - top
    assert width == picture[0] or height == picture[1]
    scale = min(picture[0] / shape[0], picture[1] / shape[1])
    assert (width, height) == pytest.approx((scale * shape[0], scale * shape[1]), abs=0.5 + 1e-6) or 1 in (
        width,
        height,
    )
    assert Image.new("L", picture).crop((left, top, right, bottom)).size == (width, height)
