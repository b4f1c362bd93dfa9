"""Decoding of encoded pictures: the one policy for pictures from the web, from data sets and from users.

- A picture is a JPEG, PNG, WebP or GIF file, recognised by its first bytes. Of an animation, or of a JPEG with more
  than one picture (MPO, which phones write), the first frame is used: on the web and on phones such files are common,
  and their first frame shows what the others show.
- The header is checked against a limit of pixels before any pixel is decoded.
- The result is RGB with 8 bits a channel, in sRGB (`model.pictures.colours`), upright by its EXIF orientation
  (`model.pictures.exif`). Transparent parts become white, and 16 bits are scaled to 8.
- Truncated and damaged files are refused. What is not pixels cannot make a file damaged: texts and profiles of any
  size, and damaged EXIF data, are ignored (`model.pictures.containers`).

Imports no torch, which takes a worker seconds.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageFile

from model.errors import ModelError
from model.files import Folder, printable_name, visible_entries
from model.pictures.colours import is_srgb, to_srgb
from model.pictures.containers import PictureFile, take_apart
from model.pictures.exif import orientation
from model.pictures.layers import decode_layers, png_depth

MAX_PIXELS = 64_000_000  # a picture of 8000 x 8000; about 200 MB once decoded
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")
#: Of pictures that are not read.
_OTHER_SUFFIXES = (".heic", ".heif", ".avif", ".jxl", ".bmp", ".tif", ".tiff", ".dng", ".cr2", ".nef", ".arw")
_OBJECT = re.compile(r" <[^<>]+ object at 0x[0-9a-fA-F]+>")
SIGNATURE_BYTES = 16  # that `picture_format` needs at most
#: The transpositions that make pictures upright, for each EXIF orientation but 1.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(ModelError):
    """A picture that cannot be used.

    Attributes:
        detail: The reason as datasets store it: "wrong_type: ...", "too_many_pixels: ..." or "decode: ...".
    """

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


def load_picture(source: str | Path | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture: RGB, upright.

    Args:
        source: A file's path, or the encoded bytes.
        max_pixels: The largest width times height that is decoded.

    Raises:
        PictureError: The file cannot be read, is not a picture, is truncated or damaged, or has too many pixels.
    """
    name = "the picture" if isinstance(source, bytes) else f"the picture {printable_name(str(source))}"
    data = source if isinstance(source, bytes) else _read(Path(source), name)
    with open_picture(data, max_pixels, name) as opened:
        return opened.upright_rgb()


def load_reduced(data: bytes, min_side: int) -> Image.Image:
    """Decode a picture at a half, a quarter or an eighth of its size, with sides of at least `min_side` pixels.

    A JPEG is read to its end and all its coefficients are decoded, so that a file is damaged here exactly when it is
    damaged for `load_picture`. Only the transform of most coefficients to pixels is left out. Other formats come in
    full size.

    Raises:
        PictureError: As `load_picture`.
    """
    with open_picture(data) as opened:
        opened.image.draft("RGB", (min_side, min_side))
        return opened.upright_rgb()


@dataclass(frozen=True, kw_only=True)
class OpenedPicture:
    """A picture whose header has been read and checked.

    Attributes:
        image: As Pillow has opened it.
        file: The file, taken apart.
    """

    image: ImageFile.ImageFile
    file: PictureFile

    @property
    def is_plain(self) -> bool:
        """Whether every decoder finds the pixels of `upright_rgb`.

        So it is for opaque RGB with 8 bits a channel in sRGB, upright, and one frame.
        """
        is_deep = self.file.kind == "PNG" and png_depth(self.file) > 8
        is_one = not getattr(self.image, "is_animated", False) and not self.file.has_more_pictures
        is_opaque_rgb = self.image.mode == "RGB" and not is_deep and not self.image.has_transparency_data
        return is_opaque_rgb and is_one and orientation(self.file) == 1 and is_srgb(self.file, "RGB")

    def upright_rgb(self, background: str = "white") -> Image.Image:
        """Decode the picture: RGB, 8 bits a channel, in sRGB, without its metadata.

        Args:
            background: The colour of transparent parts.
        """
        colours, alpha = decode_layers(self.image, self.file)
        picture = to_srgb(colours, self.file)
        if alpha is not None:
            layer, picture = picture, Image.new("RGB", picture.size, background)
            picture.paste(layer, mask=alpha)
        picture.info.clear()  # a profile or a transparent colour in it would be saved with a copy
        return self._upright(picture)

    def upright_alpha(self) -> Image.Image | None:
        """Decode the transparency alone: 8 bits grey, black where the picture is transparent; None if it has none."""
        _, alpha = decode_layers(self.image, self.file)
        return None if alpha is None else self._upright(alpha)

    def _upright(self, picture: Image.Image) -> Image.Image:
        turn = _UPRIGHT.get(orientation(self.file))
        return picture if turn is None else picture.transpose(turn)


@contextmanager
def open_picture(data: bytes, max_pixels: int = MAX_PIXELS, name: str = "the picture") -> Iterator[OpenedPicture]:
    """Open a picture and check its header. The block may decode it, and decoding errors there become PictureErrors.

    Raises:
        PictureError: As `load_picture`.
    """
    try:
        opened = _open(data, max_pixels, name)
        with opened.image:
            yield opened
    except PictureError:
        raise
    except Exception as error:  # a hostile file can make a decoder raise anything
        raise _damaged(name, _words(error)) from error


def to_png(picture: Image.Image) -> bytes:
    """Encode a picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def picture_format(data: bytes | bytearray) -> str | None:
    """Pillow's name of the format that the first bytes belong to; None for all but JPEG, PNG, WebP and GIF."""
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return "GIF" if data[:6] in (b"GIF87a", b"GIF89a") else None


def picture_files(folder: Path) -> list[Path]:
    """The pictures in a folder by their suffixes, in the order of their names, without hidden files."""
    return [
        path for path in visible_entries(folder) if path.suffix.lower() in PICTURE_SUFFIXES and os.path.isfile(path)
    ]


def left_out_pictures(folder: Folder) -> str | None:
    """A sentence on the pictures that `picture_files` leaves out for their names; None if there are none.

    Cameras name pictures in Adobe RGB so: `_MG_0001.JPG`; phones write HEIC.
    """
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    hidden = [name for name in names if name.startswith("_") and name.lower().endswith(PICTURE_SUFFIXES)]
    others = [name for name in names if name.lower().endswith(_OTHER_SUFFIXES)]
    if not hidden and not others:
        return None
    example = printable_name((hidden or others)[0])
    some = f"{len(hidden + others)} of the pictures in {printable_name(str(folder))}, such as {example}"
    advice = ["rename those whose names start with '_'"] if hidden else []
    advice += ["convert those in other formats to JPEG or PNG"] if others else []
    return f"left out {some}: {', '.join(advice)}"


def _read(file: Path, name: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise PictureError(f"{name} cannot be read: {error.strerror or error}.", f"decode: {error}") from error


def _open(data: bytes, max_pixels: int, name: str) -> OpenedPicture:
    """Read the header and no pixel; raises PictureError."""
    kind = picture_format(data)
    if kind is None:
        raise _wrong_type(name, data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `max_pixels` is stricter
            if kind == "WEBP":  # Pillow allocates the canvas of one when it opens it
                _check_pixels(_webp_size(data), max_pixels, name)
            file = take_apart(data, kind)
            image = Image.open(io.BytesIO(file.pixels), formats=[kind])
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name} has too many pixels: {error}", f"too_many_pixels: {error}") from error
    except Exception as error:  # as in `open_picture`
        raise _damaged(name, f"{kind} header: {_words(error)}") from error
    _check_pixels(image.size, max_pixels, name)
    return OpenedPicture(image=image, file=file)


def _check_pixels(size: tuple[int, int], max_pixels: int, name: str) -> None:
    if size[0] * size[1] > max_pixels:
        found = f"{size[0]} x {size[1]}"
        message = f"{name} has too many pixels: {found} are more than the {max_pixels} allowed; make it smaller."
        raise PictureError(message, f"too_many_pixels: {found} > {max_pixels}")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height. See "WebP Container Specification", sections on VP8, VP8L and VP8X."""
    chunk = data[12:16]
    if len(data) < 30 or chunk not in (b"VP8 ", b"VP8L", b"VP8X"):
        raise ValueError(f"first chunk {chunk!r} of {len(data)} bytes")
    if chunk == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _wrong_type(name: str, data: bytes) -> PictureError:
    found = f"starts with {data[:8]!r}"
    message = f"{name} is not a picture in a format that can be read (JPEG, PNG, WebP, GIF): it {found}; convert it."
    return PictureError(message, f"wrong_type: {found}")


def _damaged(name: str, words: str) -> PictureError:
    return PictureError(f"{name} is truncated or damaged: {words}.", f"decode: {words}")


def _words(error: BaseException) -> str:
    """Without Pillow's "<_io.BytesIO object at 0x...>", which differs from run to run and helps attackers."""
    return " ".join(_OBJECT.sub("", str(error)).split())[:200] or type(error).__name__
