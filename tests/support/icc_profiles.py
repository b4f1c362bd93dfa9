"""ICC profiles for tests, made by hand (ICC.1:2001-04, version 2), and the colours that they mean.

Nothing here is shared with the code under test: the columns are published ones, and the conversion is NumPy.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

D50 = (0.9642, 1.0, 0.8249)

#: Columns of the matrix from linear RGB to XYZ under D50, as the profiles of Adobe, Apple and Kodak have them.
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
PROPHOTO = ((0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.0), (0.03134, 0.00009, 0.82491))

Columns = Sequence[Sequence[float]]


def rgb_profile(columns: Columns, gamma: float, padding: int = 0) -> bytes:
    """A profile with three primaries and one exponent; `padding` bytes of copyright make it long."""
    tags = {f"{letter}XYZ": _xyz(column) for letter, column in zip("rgb", columns, strict=True)}
    tags |= {f"{letter}TRC": _curve(gamma) for letter in "rgb"}
    return _profile(b"mntrRGB XYZ ", tags | {"cprt": b"text\0\0\0\0" + b"x" * padding + b"\0"})


def grey_profile(gamma: float) -> bytes:
    return _profile(b"mntrGRAYXYZ ", {"kTRC": _curve(gamma)})


def cmyk_profile(corners: NDArray[np.float64]) -> bytes:
    """A profile that interpolates between the Lab colours (2, 2, 2, 2, 3) of no ink and full ink of each kind."""
    straight = bytes(range(256))
    lab = np.stack([corners[..., 0] * 2.55, corners[..., 1] + 128, corners[..., 2] + 128], axis=-1)
    table = np.rint(lab).astype(np.uint8).tobytes()
    identity = b"".join(struct.pack(">i", 65536 * (place % 4 == 0)) for place in range(9))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + straight * 4 + table + straight * 3
    return _profile(b"prtrCMYKLab ", {"A2B0": lut})


def stored(colours: NDArray[np.float64], columns: Columns, gamma: float) -> NDArray[np.uint8]:
    """How an RGB space stores colours (..., 3), given as sRGB in [0, 255]."""
    light = linear(colours / 255) @ np.array(SRGB) @ np.linalg.inv(np.array(columns))
    return np.rint(255 * np.clip(light, 0, 1) ** (1 / gamma)).astype(np.uint8)


def stored_grey(levels: NDArray[np.float64], gamma: float) -> NDArray[np.uint8]:
    """How a grey space stores levels of sRGB in [0, 255]."""
    return np.rint(255 * linear(levels / 255) ** (1 / gamma)).astype(np.uint8)


def lab_to_srgb(lab: Sequence[float]) -> NDArray[np.float64]:
    """A Lab colour as sRGB in [0, 255], clipped."""
    middle = (lab[0] + 16) / 116
    parts = np.array([middle + lab[1] / 500, middle, middle - lab[2] / 200])
    xyz = np.where(parts > 6 / 29, parts**3, 3 * (6 / 29) ** 2 * (parts - 4 / 29)) * D50
    light = np.clip(xyz @ np.linalg.inv(np.array(SRGB)), 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def linear(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Light of sRGB's values, both in [0, 1]."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _profile(kind: bytes, tags: dict[str, bytes]) -> bytes:
    contents = {"wtpt": _xyz(D50)} | tags
    place, table, body = 132 + 12 * len(contents), b"", b""
    for name, content in contents.items():
        table += name.encode() + struct.pack(">II", place + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    head = struct.pack(">I4xI", place + len(body), 0x02400000) + kind + b"\0" * 12 + b"acsp"
    return head.ljust(68, b"\0") + _xyz(D50)[8:] + b"\0" * 48 + struct.pack(">I", len(contents)) + table + body


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
