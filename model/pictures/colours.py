"""Colours of pictures, converted to sRGB, which models and screens expect.

What a file says about its colours counts in the order of PNG's third edition; cameras' marks come last:

1. PNG's `cICP`, for the primaries of BT.709, BT.2020 and Display P3 with the curve of sRGB or a linear one;
2. an ICC profile of the picture's own kind: RGB, grey or CMYK;
3. PNG's `sRGB`, then `gAMA` and `cHRM`;
4. EXIF's mark of Adobe RGB.

What cannot be used is ignored: a damaged profile, or one for another kind of pixels. A picture that says nothing is
sRGB. CMYK without a profile is converted by Pillow's formula, as browsers do. Not covered: high dynamic range (PQ, HLG
and gain maps), profiles in GIF files, and linked or named-colour profiles.

The intent is relative colorimetric, with black point compensation. So all colours that sRGB has stay what they are,
and black stays black; perceptual tables would change them all.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

from model.pictures.colour_spaces import ADOBE_RGB, cicp_space, png_space, space_profile
from model.pictures.containers import PictureFile
from model.pictures.exif import is_adobe_rgb

_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # of profiles, by the mode of the pictures that they describe
_NO_EFFECT = 1  # levels of 255: a profile that changes no colour by more is sRGB's own, rounded
_SRGB = ImageCms.createProfile("sRGB")
_CACHED = 32


def to_srgb(image: Image.Image, file: PictureFile) -> Image.Image:
    """The picture in sRGB.

    Args:
        image: Mode L, RGB or CMYK, 8 bits a channel, as it is stored.
        file: Says what its colours mean.

    Returns:
        Mode RGB.
    """
    conversion = _conversion(file, image.mode)
    if conversion is not None and conversion.transform is not None:
        return conversion.transform.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")  # a copy would double the time


def is_srgb(file: PictureFile, mode: str) -> bool:
    """Whether `to_srgb` changes no colour of a picture of this mode, which is L, RGB or CMYK."""
    conversion = _conversion(file, mode)
    return conversion is None or conversion.transform is None


@dataclass(frozen=True)
class _Conversion:
    transform: ImageCms.ImageCmsTransform | None  # None: the colours are sRGB's already


def _conversion(file: PictureFile, mode: str) -> _Conversion | None:
    """The first that can be used; None if the file says nothing, or nothing that can be used."""
    if not (file.profile or file.colours or file.exif):  # most files
        return None
    found = (_conversion_from(profile, mode) for profile in _profiles(file, mode))
    return next((conversion for conversion in found if conversion is not None), None)


def _profiles(file: PictureFile, mode: str) -> Iterator[bytes]:
    """ICC profiles in the order in which they count; an empty one stands for sRGB."""
    if space := cicp_space(file.colours.get(b"cICP", b"")):
        yield space_profile(space, mode)
    if file.profile:
        yield file.profile
    if b"sRGB" in file.colours:
        yield b""
    if space := png_space(file.colours.get(b"gAMA", b""), file.colours.get(b"cHRM", b"")):
        yield space_profile(space, mode)
    if file.exif and is_adobe_rgb(file):
        yield space_profile(ADOBE_RGB, mode)


@functools.lru_cache(maxsize=_CACHED)
def _conversion_from(profile: bytes, mode: str) -> _Conversion | None:
    """Cached, because it takes milliseconds. Threads may share a transform: LittleCMS writes nothing into it."""
    if not profile:
        return _Conversion(None)
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(
            source,
            _SRGB,
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    return _Conversion(None if _has_no_effect(transform, mode) else transform)


def _has_no_effect(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    if mode == "CMYK":
        return False
    if mode == "L":
        colours = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    else:
        levels = np.linspace(0, 255, 18).round().astype(np.uint8)
        colours = Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(18, -1, 3))
    before, after = (np.asarray(one.convert("RGB"), dtype=np.int16) for one in (colours, transform.apply(colours)))
    return bool(np.abs(after - before).max() <= _NO_EFFECT)
