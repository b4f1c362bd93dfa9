"""Square crops of pictures, among them that of RealCustom++ Eq. 11."""

from __future__ import annotations

from PIL import Image


def square_crop(picture: Image.Image, x: float, y: float, size: int) -> Image.Image:
    """The largest square of a picture, resized.

    Args:
        picture: of any shape.
        x: 0 takes the square at the left end of the free travel, 1 at the right end.
        y: 0 top, 1 bottom.
        size: side of the result, pixels.
    """
    side = min(picture.size)
    left, top = _offset(picture.width - side, x), _offset(picture.height - side, y)
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def crop_reference(picture: Image.Image, ratio: float, x: float, y: float, size: int) -> Image.Image:
    """A crop of the reference picture as the curriculum asks for (RealCustom++ Eq. 11).

    The picture is resized to (size * ratio)^2, then a square of side `size` is cut out, which shows 1 / ratio^2 of the
    picture. A picture that is not square is first cut to its central square, so that nothing is stretched.

    Args:
        picture: the reference.
        ratio: r >= 1.
        x: where the crop lies, from 0 (left end of the free travel) to 1 (right end).
        y: the same from top to bottom.
        size: side of the result, pixels.
    """
    if ratio < 1:
        raise ValueError(f"the crop ratio must be at least 1, not {ratio}")
    side = round(size * ratio)
    resized = square_crop(picture, 0.5, 0.5, side)
    left, top = _offset(side - size, x), _offset(side - size, y)
    return resized.crop((left, top, left + size, top + size))


def _offset(travel: int, fraction: float) -> int:
    if not 0 <= fraction <= 1:
        raise ValueError(f"the place of a crop must lie in [0, 1], not at {fraction}")
    return round(travel * fraction)
