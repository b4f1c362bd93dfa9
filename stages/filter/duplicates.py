"""Duplicates: the same pixels under another URL, and the same picture resized or compressed again.

A picture's signature has three parts: the hash of its pixels, a perceptual hash (the signs of the low frequencies of
its cosine transform, as in pHash) and its colours on an 8 x 8 grid. Two pictures are near duplicates when at most
`MAX_BITS` bits of the perceptual hash differ and their colours are similar. The colours matter because the perceptual
hash cannot distinguish objects that differ only in colour.

Measured on 190 pictures of the micro world in 12 versions each, at 0.75 to 1.5 times the size and JPEG quality 75 to
40: all 2,280 versions are recognised, and two different pictures differ in at least 10 bits and by 12.2 of 255. The
same for 40 photographs of DreamBench, 256 pixels wide, at 0.6 to 1.31 times the size: all 480 are recognised, and
different photographs differ in at least 21 bits and by 19.5.

JPEGs are decoded at a half, a quarter or an eighth of their size, with sides of 64 pixels or more
(`model.pictures.decoding.load_reduced`). "The same pixels" means the pixels at that size.

The search runs in one process over the whole dataset. It needs about 100 bytes of memory a picture (the colours stay on
disk). A picture is compared with those that share 15 of 16 bits of a quarter of the hash and are about as bright.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image

from stages.filter.candidate import GRID

MAX_BITS = 7  # of 64
MAX_COLOUR_DIFFERENCE = 4.0  # mean absolute difference over the grid, of 255
DIGEST_BYTES = 16
COLOUR_BYTES = 192
_CELLS = 8
_BANDS = 4  # with at most 7 differing bits, at least one of 4 bands of 16 bits differs in at most one of them
_BAND_BITS = 16
#: Mean brightness in steps of the greatest difference of colours: those of two near duplicates are at most one apart.
_LEVELS = 64
_BLOCK = 1024
_ROWS_AT_ONCE = 65536
_MAX_CANDIDATES = 8_000_000  # pairs compared at once: 64 MB an array

Bits = NDArray[np.uint64]
Index = NDArray[np.int64]


def _cosine_basis(rows: int, side: int) -> NDArray[np.float64]:
    """The lowest frequencies of the DCT-II but the constant one, as rows (rows, side)."""
    frequency = np.arange(1, rows + 1)[:, None]
    return np.cos(np.pi * frequency * (np.arange(side) + 0.5) / side)


_BASIS = _cosine_basis(8, GRID)
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What the search for duplicates needs of a picture."""

    digest: bytes  # 16 bytes of a hash of size and pixels
    bits: int  # 64-bit perceptual hash
    colours: bytes  # 8 x 8 x 3


def signatures(pictures: Iterable[tuple[Image.Image, NDArray[np.uint8]]]) -> list[Signature]:
    """The signatures of RGB pictures, each given with its `colour_grid`. Only the grids are kept in memory."""
    parts = [(pixel_digest(picture), grid) for picture, grid in pictures]
    if not parts:
        return []
    grids = np.stack([grid for _, grid in parts])  # all at once is faster than one by one
    cells = grids.reshape(-1, _CELLS, GRID // _CELLS, _CELLS, GRID // _CELLS, 3).mean((2, 4))
    return [
        Signature(digest=digest, bits=bits, colours=colours.tobytes())
        for (digest, _), bits, colours in zip(
            parts, perceptual_bits(grids).tolist(), cells.round().astype(np.uint8), strict=True
        )
    ]


def pixel_digest(picture: Image.Image) -> bytes:
    """16 bytes for the size and the pixels of an RGB picture.

    A cryptographic hash would take as long as all rules together, and an attacker gains nothing from a collision.
    """
    return xxhash.xxh3_128_digest(picture.tobytes(), seed=picture.width)


def perceptual_bits(grids: NDArray[np.uint8]) -> Bits:
    """The 64-bit perceptual hash (n,) of each of n colour grids (n, 32, 32, 3)."""
    frequencies = _BASIS @ (grids @ _LUMA) @ _BASIS.T
    return np.packbits((frequencies > 0).reshape(-1, 64), axis=1).view(">u8").ravel().astype(np.uint64)


@dataclass(frozen=True, kw_only=True)
class Signatures:
    """The signatures of n pictures in the order of their ids. Pictures with equal digests are equal in all parts."""

    digests: Bits  # (n, 2)
    bits: Bits  # (n,)
    colours: NDArray[np.uint8]  # (n, 192); may be mapped from a file
    rows: Index  # (n,) the row of `colours` that belongs to each picture

    @classmethod
    def of(cls, signatures: Sequence[Signature]) -> Signatures:
        """Collect the signatures of a few pictures in memory."""
        digests = b"".join(one.digest for one in signatures)
        colours = b"".join(one.colours for one in signatures)
        return cls(
            digests=np.frombuffer(digests, np.uint64).reshape(-1, 2),
            bits=np.array([one.bits for one in signatures], np.uint64),
            colours=np.frombuffer(colours, np.uint8).reshape(-1, COLOUR_BYTES),
            rows=np.arange(len(signatures)),
        )


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """For each of n pictures the earlier picture that it duplicates (-1: none), and whether all pixels are equal."""

    original: Index  # (n,)
    is_exact: NDArray[np.bool_]  # (n,)


def find_duplicates(signatures: Signatures) -> Duplicates:
    """Compare each picture with the earlier pictures that are kept. The first of a group of duplicates is kept."""
    first = _first_with_digest(signatures.digests)
    own = np.flatnonzero(first == np.arange(len(first)))  # the pictures without their exact copies
    near = np.full(len(first), -1, dtype=np.int64)
    found = _near_duplicates(signatures.bits[own], signatures.colours, signatures.rows[own])
    near[own] = np.where(found >= 0, own[found], -1)
    # An exact copy of a picture that was itself rejected is a near duplicate of the same original.
    is_exact = (first != np.arange(len(first))) & (near[first] < 0)
    return Duplicates(original=np.where(is_exact, first, near[first]), is_exact=is_exact)


def _first_with_digest(digests: Bits) -> Index:
    """For each row of (n, 2) the first row that equals it: (n,)."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: equal rows stay in order
    ordered = digests[order]
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(1)
    first = np.empty(len(order), dtype=np.int64)
    first[order] = order[starts][np.cumsum(starts) - 1]
    return first


def _near_duplicates(bits: Bits, colours: NDArray[np.uint8], rows: Index) -> Index:
    """For each picture the first earlier picture that is kept and near, or -1: (n,)."""
    levels = _brightness_levels(colours, rows)
    bands = [_Band(bits, levels, number) for number in range(_BANDS)]
    original = np.full(len(bits), -1, dtype=np.int64)
    for start in range(0, len(bits), _BLOCK):
        for queries in _affordable(np.arange(start, min(start + _BLOCK, len(bits))), bits, bands):
            pairs = _close_pairs(queries, bits, bands, original)
            difference = np.abs(colours[rows[pairs[:, 0]]].astype(np.int16) - colours[rows[pairs[:, 1]]])
            for later, earlier in pairs[difference.mean(1) <= MAX_COLOUR_DIFFERENCE]:
                if original[later] < 0 and original[earlier] < 0:
                    original[later] = earlier
    return original


def _brightness_levels(colours: NDArray[np.uint8], rows: Index) -> Index:
    """The mean of each picture's colours in steps of `MAX_COLOUR_DIFFERENCE`: (n,), less than `_LEVELS`."""
    sums = np.empty(len(rows), np.int64)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        sums[some] = colours[rows[some]].sum(1, dtype=np.int64)
    levels: Index = sums // int(MAX_COLOUR_DIFFERENCE * COLOUR_BYTES)
    return levels


class _Band:
    """The pictures sorted by 16 of the 64 bits of their hash, and then by their brightness."""

    def __init__(self, bits: Bits, levels: Index, number: int) -> None:
        self.shift = np.uint64(number * _BAND_BITS)
        self.levels = levels
        keys = self._keys(bits) * _LEVELS + levels
        self.order: Index = np.argsort(keys, kind="stable")
        counts = np.bincount(keys, minlength=2**_BAND_BITS * _LEVELS)
        self.starts: Index = np.concatenate([[0], np.cumsum(counts)])

    def _keys(self, bits: Bits) -> Index:
        return ((bits >> self.shift) & np.uint64(2**_BAND_BITS - 1)).astype(np.int64)

    def ranges(self, queries: Index, bits: Bits) -> tuple[Index, Index]:
        """The ranges of `order` whose band differs in at most one bit, and whose brightness in at most one level.

        Returns:
            Starts and lengths, (17, n).
        """
        flips = np.array([0, *(1 << bit for bit in range(_BAND_BITS))])
        keys = (self._keys(bits[queries]) ^ flips[:, None]) * _LEVELS
        levels = self.levels[queries]
        starts = self.starts[keys + np.maximum(levels - 1, 0)]
        return starts, self.starts[keys + np.minimum(levels + 1, _LEVELS - 1) + 1] - starts


def _affordable(queries: Index, bits: Bits, bands: list[_Band]) -> Iterator[Index]:
    """The queries in order, in pieces whose candidates fit in memory."""
    candidates = sum(int(band.ranges(queries, bits)[1].sum()) for band in bands)
    if candidates <= _MAX_CANDIDATES or len(queries) == 1:
        yield queries
        return
    middle = len(queries) // 2
    yield from _affordable(queries[:middle], bits, bands)
    yield from _affordable(queries[middle:], bits, bands)


def _close_pairs(queries: Index, bits: Bits, bands: list[_Band], original: Index) -> Index:
    """Sorted pairs (m, 2) of a query and an earlier picture that is kept, at most MAX_BITS bits apart."""
    found = [np.empty((0, 2), dtype=np.int64)]
    for band in bands:
        starts, lengths = (values.ravel() for values in band.ranges(queries, bits))
        repeated = np.repeat(np.tile(queries, _BAND_BITS + 1), lengths)
        before = np.cumsum(lengths) - lengths
        others = band.order[np.repeat(starts - before, lengths) + np.arange(len(repeated))]
        earlier = others < repeated
        repeated, others = repeated[earlier], others[earlier]
        is_close = (np.bitwise_count(bits[repeated] ^ bits[others]) <= MAX_BITS) & (original[others] < 0)
        found.append(np.stack([repeated[is_close], others[is_close]], axis=1))
    return np.unique(np.concatenate(found), axis=0)
