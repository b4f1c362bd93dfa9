"""Square crops of pictures, among them that of RealCustom++ Eq. 11."""

from __future__ import annotations

from PIL import Image


def square_crop(picture: Image.Image, x: float, y: float, size: int) -> Image.Image:
    """Cut the largest square out of a picture, and resize it.

    Args:
        picture: Of any shape.
        x: Horizontal position of the square, from 0 (left end of its free travel) to 1 (right end).
        y: Vertical position, from 0 (top) to 1 (bottom).
        size: Side of the result, pixels.
    """
    side = min(picture.size)
    left, top = _offset(picture.width - side, x), _offset(picture.height - side, y)
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


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
