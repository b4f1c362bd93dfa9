"""The table of picture files: each is decoded to the pixels that its format and its metadata mean."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.pictures.colour_spaces import png_space
from model.pictures.colours import is_srgb
from model.pictures.decoding import load_picture, load_reduced, open_picture
from tests.support.file_parts import chunk, encode, segment, with_chunks, with_segments
from tests.support.icc_profiles import ADOBE_RGB, rgb_profile
from tests.support.picture_table import RGB, picture_table

TABLE = picture_table()
PLAIN_PNG, PLAIN_JPEG, PLAIN_WEBP = encode(RGB), encode(RGB, "JPEG"), encode(RGB, "WEBP", lossless=True)
PIXELS = {data: load_picture(data).tobytes() for data in (PLAIN_PNG, PLAIN_JPEG, PLAIN_WEBP)}


@pytest.mark.parametrize("name", TABLE)
def test_the_pixels_are_those_that_the_file_means(name: str) -> None:
    case = TABLE[name]
    for loaded in (load_picture(case.data), load_reduced(case.data, 1000)):
        assert (loaded.mode, loaded.info) == ("RGB", {})
        pixels = np.asarray(loaded, dtype=float)
        assert pixels.shape == case.expected.shape
        assert np.abs(pixels - case.expected).max() <= case.tolerance


bodies = st.binary(max_size=80) | st.sampled_from([b"ICC_PROFILE\0\1\1", b"Exif\0\0II*\0", b"MPF\0MM", b"JFIF\0"])


@given(marker=st.sampled_from([*range(0xE0, 0xF0), 0xFE]), body=bodies, repeated=st.integers(1, 3))
def test_no_segment_of_a_jpeg_changes_its_pixels(marker: int, body: bytes, repeated: int) -> None:
    data = with_segments(PLAIN_JPEG, *[segment(marker, body)] * repeated)
    assert load_picture(data).tobytes() == PIXELS[PLAIN_JPEG]


@given(
    name=st.sampled_from([b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"pHYs", b"xyZa"]),
    body=st.binary(max_size=80),
    crc=st.none() | st.integers(0, 2**32 - 1),
    at_end=st.booleans(),
)
def test_no_chunk_of_a_png_changes_its_pixels(name: bytes, body: bytes, crc: int | None, at_end: bool) -> None:
    data = with_chunks(PLAIN_PNG, [chunk(name, body, crc)], at_end)
    assert load_picture(data).tobytes() == PIXELS[PLAIN_PNG]


@given(exif=st.binary(min_size=1, max_size=80), profile=st.binary(min_size=1, max_size=80))
def test_no_metadata_of_a_webp_changes_its_pixels(exif: bytes, profile: bytes) -> None:
    data = encode(RGB, "WEBP", lossless=True, exif=exif, icc_profile=profile)
    assert load_picture(data).tobytes() == PIXELS[PLAIN_WEBP]


@given(
    gamma=st.binary(max_size=5),
    chromaticities=st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 100_000), max_size=8),
)
def test_every_description_of_colours_can_be_read(gamma: bytes, chromaticities: list[int]) -> None:
    bodies = {b"gAMA": gamma, b"cHRM": b"".join(value.to_bytes(4) for value in chromaticities)}
    data = with_chunks(PLAIN_PNG, [chunk(name, body) for name, body in bodies.items()])
    assert load_picture(data).size == (48, 48)
    assert png_space(b"", b"") is None


@given(damage=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=4))
def test_every_damaged_profile_is_used_or_ignored(damage: list[tuple[int, int]]) -> None:
    profile = bytearray(rgb_profile(ADOBE_RGB, 2.2))
    for place, value in damage:
        profile[place % len(profile)] = value
    assert load_picture(encode(RGB, icc_profile=bytes(profile))).size == (48, 48)


def test_threads_share_a_conversion() -> None:
    names = [name for name in TABLE if name.startswith(("adobe", "display", "prophoto", "cmyk"))]
    expected = {name: load_picture(TABLE[name].data).tobytes() for name in names}
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda name: (name, load_picture(TABLE[name].data).tobytes()), names * 20))
    assert all(pixels == expected[name] for name, pixels in found)


def test_a_profile_of_srgb_needs_no_conversion() -> None:
    with open_picture(TABLE["srgb jpeg"].data) as srgb, open_picture(TABLE["adobe rgb jpeg"].data) as adobe:
        assert (is_srgb(srgb.file, "RGB"), srgb.is_plain) == (True, True)
        assert (is_srgb(adobe.file, "RGB"), adobe.is_plain) == (False, False)
