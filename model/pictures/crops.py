"""Crops of pictures, among them that of RealCustom++ Eq. 11."""

from __future__ import annotations

from PIL import Image


def covering_box(picture: tuple[int, int], shape: tuple[int, int], x: float, y: float) -> tuple[int, int, int, int]:
    """The largest part of a picture with the sides' ratio of `shape`.

    Args:
        picture: Width and height.
        shape: Width and height, in any unit.
        x: Horizontal position of the part, from 0 (left end of its free travel) to 1 (right end).
        y: Vertical position, from 0 (top) to 1 (bottom).

    Returns:
        Left, top, right, bottom, pixels of the picture.
    """
    (width, height), (across, down) = picture, shape
    if width * down > height * across:
        width = max(1, round(height * across / down))
    else:
        height = max(1, round(width * down / across))
    left, top = _offset(picture[0] - width, x), _offset(picture[1] - height, y)
    return left, top, left + width, top + height


def cover(picture: Image.Image, x: float, y: float, shape: tuple[int, int]) -> Image.Image:
    """Cut `covering_box` out of a picture, and resize it to `shape`: width and height, pixels."""
    return picture.resize(shape, Image.Resampling.BICUBIC, box=covering_box(picture.size, shape, x, y))


def square_crop(picture: Image.Image, x: float, y: float, size: int) -> Image.Image:
    """Cut the largest square out of a picture, at a position as in `covering_box`; `size`: its new side, pixels."""
    return cover(picture, x, y, (size, size))


def crop_reference(picture: Image.Image, ratio: float, x: float, y: float, size: int) -> Image.Image:
    """Crop the reference picture of the curriculum (RealCustom++ Eq. 11).

    The picture is resized to (size * ratio)^2. Then a square of side `size` is cut out, which shows 1 / ratio^2 of the
    picture. A picture that is not square is first cut to its central square, so that nothing is stretched.

    Args:
        picture: The reference.
        ratio: r >= 1.
        x: Horizontal position of the crop, from 0 (left end of its free travel) to 1 (right end).
        y: Vertical position, from 0 (top) to 1 (bottom).
        size: Side of the result, pixels.
    """
    if ratio < 1:
        raise ValueError(f"the crop ratio must be at least 1, not {ratio}")
    side = round(size * ratio)
    resized = square_crop(picture, 0.5, 0.5, side)
    left, top = _offset(side - size, x), _offset(side - size, y)
    return resized.crop((left, top, left + size, top + size))


def _offset(travel: int, fraction: float) -> int:
    if not 0 <= fraction <= 1:
        raise ValueError(f"the position of a crop must lie in [0, 1], not at {fraction}")
    return round(travel * fraction)
