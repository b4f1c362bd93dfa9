"""Pictures on their way in and out: decoding with checks, crops (RealCustom++ Eq. 11), tensors."""

import struct
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from model.errors import ModelError

MAX_PIXELS = 64_000_000  # a picture of 8000 x 8000; about 200 MB once decoded
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, TypeError)


class PictureError(ModelError):
    """What was given cannot be used as a picture; the message is one sentence for the user."""


def load_picture(source: str | Path | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture to RGB.

    The EXIF rotation is applied, transparency is laid on white, grey, palette and CMYK pictures are converted. The
    pixel budget is checked on the header, before anything is decoded. Of a multi-picture JPEG (MPO, as phones write)
    the first picture is taken.

    Args:
        source: a file's path, or the encoded bytes.
        max_pixels: the largest width times height that is decoded.

    Raises:
        PictureError: not a picture, unreadable, truncated, animated, of more than 8 bits a channel, or too large.
    """
    name = "the picture" if isinstance(source, bytes) else f"the picture {source}"
    if not isinstance(source, bytes):
        try:
            source = Path(source).read_bytes()
        except OSError as error:
            raise PictureError(f"{name} cannot be read: {error.strerror or error}.") from error
    picture = _open(source, name)
    _check_header(picture, name, max_pixels)
    try:
        return _on_white(ImageOps.exif_transpose(picture))
    except _DECODING_ERRORS as error:
        raise PictureError(f"{name} is truncated or damaged: {error}.") from error


def _open(data: bytes, name: str) -> Image.Image:
    """Read the header only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_check_header` is stricter
        try:
            return Image.open(BytesIO(data))
        except Image.DecompressionBombError as error:
            raise PictureError(f"{name} is too large: {error}.") from error
        except _DECODING_ERRORS as error:
            raise PictureError(f"{name} is not a picture in a format that can be read (PNG, JPEG, WebP...).") from error


def _check_header(picture: Image.Image, name: str, max_pixels: int) -> None:
    if picture.width * picture.height > max_pixels:
        size = f"{picture.width} x {picture.height}"
        raise PictureError(f"{name} is too large: {size} pixels, and at most {max_pixels} in all are accepted.")
    if getattr(picture, "is_animated", False) and picture.format != "MPO":
        raise PictureError(f"{name} is animated or has several pages; give a still picture.")
    if picture.mode in _DEEP_MODES:
        raise PictureError(f"{name} has more than 8 bits a channel (mode {picture.mode}); convert it to 8 bits.")


def _on_white(picture: Image.Image) -> Image.Image:
    """RGB; transparent parts become white."""
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


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


def to_tensor(pictures: Image.Image | Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size -> (B, 3, H, W) in [0, 1]; a single picture -> (3, H, W)."""
    if isinstance(pictures, Image.Image):
        return torch.from_numpy(np.array(pictures.convert("RGB"))).permute(2, 0, 1).float() / 255
    return torch.stack([to_tensor(picture) for picture in pictures])


def to_pictures(tensor: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [0, 1], values outside are clipped -> RGB pictures."""
    array = (tensor.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in array]


def mask_picture(masks: Tensor, side: int) -> Image.Image:
    """Masks (S, G, G') in [0, 1] as one grey picture whose shorter side is at least `side`, whole blocks per position.

    A position has the largest of its S values.
    """
    mask = masks.amax(0)
    block = max(1, -(-side // min(mask.shape)))
    grey = (mask.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    return Image.fromarray(grey.repeat_interleave(block, 0).repeat_interleave(block, 1).numpy())


def to_png(picture: Image.Image) -> bytes:
    """The picture, encoded."""
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
