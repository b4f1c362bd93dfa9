"""Colour spaces that files name without an ICC profile, and ICC profiles for them."""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ColourSpace:
    """Chromaticities x, y and the curve: an exponent from stored values to light, None for sRGB's curve."""

    white: Point = (0.3127, 0.3290)
    red: Point = (0.64, 0.33)
    green: Point = (0.30, 0.60)
    blue: Point = (0.15, 0.06)
    gamma: float | None = None


ADOBE_RGB = ColourSpace(green=(0.21, 0.71), gamma=563 / 256)
_DISPLAY_P3 = ColourSpace(red=(0.680, 0.320), green=(0.265, 0.690))
_BT_2020 = ColourSpace(red=(0.708, 0.292), green=(0.170, 0.797), blue=(0.131, 0.046))
#: Primaries and curves by their codes in ITU-T H.273.
_CICP_PRIMARIES = {1: ColourSpace(), 9: _BT_2020, 12: _DISPLAY_P3}
_CICP_GAMMAS = {8: 1.0, 13: None}
_GAMMA_TOLERANCE = 0.05  # libpng's
_CHROMATICITY_TOLERANCE = 0.01
_USUAL_GAMMA, _GAMMAS = 2.2, (0.2, 5.0)
_LARGEST_COLUMN = 2.0  # those of usual spaces are at most 1


def cicp_space(chunk: bytes) -> ColourSpace | None:
    """The space that PNG's chunk cICP names: primaries, curve, matrix (0: RGB), whether all values are used.

    None if it is damaged, or not covered.
    """
    if len(chunk) != 4 or chunk[0] not in _CICP_PRIMARIES or chunk[1] not in _CICP_GAMMAS or chunk[2:] != b"\0\1":
        return None
    return replace(_CICP_PRIMARIES[chunk[0]], gamma=_CICP_GAMMAS[chunk[1]])


def png_space(gamma: bytes, chromaticities: bytes) -> ColourSpace | None:
    """The space that PNG's chunks gAMA and cHRM describe, which may be empty; None if it is about sRGB.

    Values that are near to sRGB's, or are none, count as sRGB's.
    """
    exponent, primaries = _png_exponent(gamma), _png_primaries(chromaticities)
    if exponent is None and primaries is None:
        return None
    return replace(primaries or ColourSpace(), gamma=exponent)


def _png_exponent(chunk: bytes) -> float | None:
    """The exponent from stored values to light; the chunk holds that of the other direction times 100,000."""
    if len(chunk) != 4 or not any(chunk):
        return None
    exponent = 100_000 / int.from_bytes(chunk)
    is_usual = abs(exponent / _USUAL_GAMMA - 1) <= _GAMMA_TOLERANCE
    return exponent if _GAMMAS[0] <= exponent <= _GAMMAS[1] and not is_usual else None


def _png_primaries(chunk: bytes) -> ColourSpace | None:
    """The chunk holds x and y of white, red, green and blue, times 100,000."""
    if len(chunk) != 32:
        return None
    values = [number / 100_000 for number in struct.unpack(">8I", chunk)]
    white, red, green, blue = zip(values[::2], values[1::2], strict=True)
    space, srgb = ColourSpace(white=white, red=red, green=green, blue=blue), ColourSpace()
    own = [*srgb.white, *srgb.red, *srgb.green, *srgb.blue]
    is_srgb = np.allclose(values, own, rtol=0, atol=_CHROMATICITY_TOLERANCE)
    return space if not is_srgb and _is_possible(space) else None


def _is_possible(space: ColourSpace) -> bool:
    """Whether the primaries of a space span one, and its white can be mixed from them."""
    points = np.array([space.white, space.red, space.green, space.blue])
    if not ((points[:, 1] > 0).all() and (points <= 1).all()):
        return False
    try:
        columns = _primaries_to_xyz(space)
    except np.linalg.LinAlgError:
        return False
    return bool((np.abs(columns) <= _LARGEST_COLUMN).all() and (columns.sum(axis=0) > 0).all())


# --- profiles of known colour spaces -------------------------------------------------------------------------------

_D50 = np.array([0.9642, 1.0, 0.8249])  # white of all ICC profiles
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_SRGB_CURVE = (3, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))  # function type and parameters


@functools.lru_cache(maxsize=32)
def space_profile(space: ColourSpace, mode: str) -> bytes:
    """The ICC profile (version 4, ICC.1:2010) of a space, for grey pictures (mode L) or RGB."""
    kind, parameters = _SRGB_CURVE if space.gamma is None else (0, (space.gamma,))
    curve = b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + b"".join(map(_fixed, parameters))
    tags = {b"wtpt": _xyz_tag(_D50)}
    if mode == "L":
        tags[b"kTRC"] = curve
    else:
        columns = _primaries_to_xyz(space).T
        tags |= {name + b"XYZ": _xyz_tag(column) for name, column in zip((b"r", b"g", b"b"), columns, strict=True)}
        tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    place, table, body = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">II", place + len(body), len(content))
        body += content
    signatures = b"mntr" + (b"GRAY" if mode == "L" else b"RGB ") + b"XYZ "
    head = struct.pack(">I4xI", place + len(body), 0x04300000) + signatures + b"\0" * 12 + b"acsp"
    head = head.ljust(68, b"\0") + b"".join(map(_fixed, _D50))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _primaries_to_xyz(space: ColourSpace) -> NDArray[np.float64]:
    """The matrix (3, 3) from linear RGB to XYZ, adapted to D50 by Bradford's method."""
    points = np.array([space.red, space.green, space.blue]).T
    primaries = np.stack([points[0] / points[1], np.ones(3), (1 - points.sum(0)) / points[1]])
    white = np.array([space.white[0] / space.white[1], 1, (1 - sum(space.white)) / space.white[1]])
    cones = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white))
    adaptation = np.linalg.solve(_BRADFORD, cones @ _BRADFORD)
    return adaptation @ (primaries * np.linalg.solve(primaries, white))


def _xyz_tag(values: NDArray[np.float64]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, values))


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(float(value) * 65536))
