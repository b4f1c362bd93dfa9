"""Duplicates: the search against the obvious one, and which copies of real pictures it recognises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.pictures.decoding import load_picture
from stages.filter.candidate import colour_grid
from stages.filter.duplicates import (
    MAX_BITS,
    MAX_COLOUR_DIFFERENCE,
    Signature,
    Signatures,
    find_duplicates,
    signatures,
)
from tests.support.picture_files import encode, scene


def signature_of(data: bytes) -> Signature:
    picture = load_picture(data)
    return signatures([(picture, colour_grid(picture))])[0]


def naive_duplicates(parts: list[Signature]) -> list[tuple[int, bool]]:
    """All against all that were kept: the original (-1: kept) and whether it is the same."""
    kept: list[int] = []
    found: list[tuple[int, bool]] = []
    colours = [np.frombuffer(part.colours, np.uint8).astype(np.int16) for part in parts]
    for number, one in enumerate(parts):
        same = [other for other in kept if parts[other].digest == one.digest]
        near = [
            other
            for other in kept
            if bin(one.bits ^ parts[other].bits).count("1") <= MAX_BITS
            and np.abs(colours[number] - colours[other]).mean() <= MAX_COLOUR_DIFFERENCE
        ]
        if same or near:
            found.append((same[0], True) if same else (near[0], False))
        else:
            kept.append(number)
            found.append((-1, False))
    return found


# Few values, so that near ones are frequent: any four bits in each band of 16, and two colours.
parts_strategy = st.lists(
    st.tuples(st.integers(0, 2**64 - 1).map(lambda n: n & 0xF00F_0F00_00F3_8421), st.integers(0, 5)), max_size=40
).map(
    lambda drawn: [
        Signature(digest=bits.to_bytes(8) + colour.to_bytes(8), bits=bits, colours=bytes([colour]) * 192)
        for bits, colour in drawn
    ]
)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(parts=parts_strategy)
def test_duplicates_are_those_of_the_obvious_search(parts: list[Signature]) -> None:
    found = find_duplicates(Signatures.of(parts))
    assert list(zip(found.original.tolist(), found.is_exact.tolist(), strict=True)) == naive_duplicates(parts)


def test_duplicates_over_several_blocks_and_crowded_bands() -> None:
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 2**63, 40, dtype=np.uint64)
    parts: list[Signature] = []
    for number in range(2500):
        bits = int(centres[rng.integers(40)])
        for place in rng.integers(0, 64, rng.integers(0, 9)):
            bits ^= 1 << int(place)
        colours = bytes([int(rng.integers(0, 8))]) * 192
        parts.append(Signature(digest=number.to_bytes(16), bits=bits, colours=colours))
    found = find_duplicates(Signatures.of(parts))
    assert list(zip(found.original.tolist(), found.is_exact.tolist(), strict=True)) == naive_duplicates(parts)
    assert 0 < (found.original < 0).sum() < 2500


def test_copies_are_recognised_and_other_pictures_are_not() -> None:
    pictures = {f"{seed:02d}": encode(scene(seed)) for seed in range(40)}
    pictures["90 same"] = pictures["05"]
    pictures["91 resized"] = encode(scene(7).resize((72, 72), Image.Resampling.BICUBIC), quality=75)
    pictures["92 compressed"] = encode(scene(8), quality=50)
    red, blue = Image.new("RGB", (64, 64), "white"), Image.new("RGB", (64, 64), "white")
    red.paste("#d02020", (16, 16, 48, 48))
    blue.paste("#2040d0", (16, 16, 48, 48))
    pictures |= {"93 red": encode(red), "94 blue": encode(blue)}
    found = find_duplicates(Signatures.of([signature_of(picture) for picture in pictures.values()]))
    names = list(pictures)
    assert {names[n]: names[o] for n, o in enumerate(found.original) if o >= 0} == {
        "90 same": "05", "91 resized": "07", "92 compressed": "08",
    }  # fmt: skip
    assert [names[n] for n in np.flatnonzero(found.is_exact)] == ["90 same"]
