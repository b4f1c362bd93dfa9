"""What picture files hold beside their pixels: colour profiles, EXIF data, texts.

A file is taken apart before a decoder sees it. So nothing but its pixels can make a picture unreadable: no text of a
megabyte that a PNG holds as a workflow, no damaged block of an editor. What is needed of the rest is kept as bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

_MAX_TEXT_BYTES = 1_000_000  # once decompressed; of the texts that can hold an orientation
_MAX_PROFILE_BYTES = 4_000_000  # those of presses have up to 3 MB

_APP0, _APP1, _APP2, _APP14, _APP15, _COMMENT = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE
_START_OF_SCAN = 0xDA
_ICC_HEAD, _EXIF_HEAD, _XMP_HEAD, _MPF_HEAD = b"ICC_PROFILE\0", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"MPF\0"

_PNG_COLOURS = (b"cICP", b"sRGB", b"gAMA", b"cHRM")
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
#: Keywords of the texts in which PNG files had EXIF data before there was a chunk for it; and that of XMP.
_PNG_EXIF_TEXTS, _PNG_XMP_TEXT = (b"Raw profile type exif", b"Raw profile type APP1"), b"XML:com.adobe.xmp"


@dataclass(frozen=True, kw_only=True)
class PictureFile:
    """A picture's file, taken apart. What is damaged or too large counts as absent.

    Attributes:
        kind: Pillow's name of the format.
        pixels: A file with the same pixels and nothing beside them; the file itself if that is so already, and for
            the formats whose decoder reads nothing else.
        profile: The ICC profile.
        exif: EXIF data.
        xmp: The XMP packet.
        colours: The chunks of a PNG file that say what its colours mean, by name.
        has_more_pictures: Whether a JPEG file holds more than one (Multi-Picture Format).
    """

    kind: str
    pixels: bytes
    profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    colours: Mapping[bytes, bytes] = field(default_factory=dict)
    has_more_pictures: bool = False


def take_apart(data: bytes, kind: str) -> PictureFile:
    """Separate the pixels of a file from the rest. A damaged file is left to the decoder.

    Args:
        data: The file.
        kind: Pillow's name of its format: JPEG, PNG, WEBP or GIF.
    """
    if kind == "JPEG":
        return _jpeg(data)
    if kind == "PNG":
        return _png(data)
    return _webp(data) if kind == "WEBP" else PictureFile(kind=kind, pixels=data)


def _without(data: bytes, places: Sequence[tuple[int, int]]) -> bytes:
    """The data without what lies between the given places, which ascend."""
    if not places:
        return data
    view, ends = memoryview(data), [0, *(end for _, end in places)]
    starts = [*(start for start, _ in places), len(data)]
    return b"".join(view[end:start] for end, start in zip(ends, starts, strict=True))


# --- JPEG ----------------------------------------------------------------------------------------------------------


def _jpeg(data: bytes) -> PictureFile:
    left_out: list[tuple[int, int]] = []
    bodies: dict[int, list[bytes]] = {_APP1: [], _APP2: []}
    for marker, start, end in _jpeg_segments(data):
        body = data[start + 4 : end]
        if marker in bodies:
            bodies[marker].append(body)
        if not _is_for_decoder(marker, body):
            left_out.append((start, end))
    return PictureFile(
        kind="JPEG",
        pixels=_without(data, left_out),
        profile=_jpeg_profile([body for body in bodies[_APP2] if body.startswith(_ICC_HEAD)]),
        exif=next((body for body in bodies[_APP1] if body.startswith(_EXIF_HEAD)), None),
        xmp=next((body for body in bodies[_APP1] if body.startswith(_XMP_HEAD)), None),
        has_more_pictures=any(body.startswith(_MPF_HEAD) for body in bodies[_APP2]),
    )


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of the application segments and comments before the first scan."""
    start = 2
    while start + 4 <= len(data) and data[start] == 0xFF:
        marker = data[start + 1]
        if marker == 0xFF:  # padding
            start += 1
            continue
        end = start + 2 + (data[start + 2] << 8 | data[start + 3])
        if marker < 0xC0 or 0xD0 <= marker <= _START_OF_SCAN or end < start + 4 or end > len(data):
            return
        if _APP0 <= marker <= _APP15 or marker == _COMMENT:
            yield marker, start, end
        start = end


def _is_for_decoder(marker: int, body: bytes) -> bool:
    """Whether a segment can change how libjpeg interprets the components: those of JFIF and Adobe can."""
    if marker == _APP0:
        return body.startswith(b"JFIF\0") and len(body) >= 14
    return marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12


def _jpeg_profile(bodies: Sequence[bytes]) -> bytes | None:
    """The profile from its numbered pieces."""
    head = len(_ICC_HEAD)
    pieces = {
        body[head]: body[head + 2 :] for body in bodies if len(body) >= head + 2 and body[head + 1] == len(bodies)
    }
    if sorted(pieces) != list(range(1, len(bodies) + 1)):
        return None
    return _usable_profile(b"".join(pieces[number] for number in sorted(pieces)))


def _usable_profile(profile: bytes) -> bytes | None:
    return profile if 0 < len(profile) <= _MAX_PROFILE_BYTES else None


# --- PNG -----------------------------------------------------------------------------------------------------------


def _png(data: bytes) -> PictureFile:
    """All chunks are left out but the critical ones and the transparency. Without those of an animation, the picture
    is the still one that comes first.
    """
    left_out: list[tuple[int, int]] = []
    found: dict[bytes, bytes] = {}
    texts: dict[bytes, bytes] = {}
    for name, start, end in _png_chunks(data):
        if not name[0] & 0x20:  # critical
            continue
        is_sound = zlib.crc32(data[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end])
        if not (is_sound and name == b"tRNS"):
            left_out.append((start, end))
        if is_sound and name in _PNG_TEXTS:
            keyword, _, text = data[start + 8 : end - 4].partition(b"\0")
            texts.setdefault(keyword, name + text)
        elif is_sound and name in (*_PNG_COLOURS, b"iCCP", b"eXIf"):
            found.setdefault(name, data[start + 8 : end - 4])
    return PictureFile(
        kind="PNG",
        pixels=_without(data, left_out),
        profile=_png_profile(found.get(b"iCCP", b"")),
        exif=found.get(b"eXIf") or _exif_from_text(texts),
        xmp=_png_text(texts[_PNG_XMP_TEXT]) if _PNG_XMP_TEXT in texts else None,
        colours={name: body for name, body in found.items() if name in _PNG_COLOURS},
    )


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of the chunks, as far as the file is whole."""
    start = 8
    while start + 12 <= len(data):
        name, end = data[start + 4 : start + 8], start + 12 + int.from_bytes(data[start : start + 4])
        if end > len(data) or not name.isalpha():
            return
        yield name, start, end
        start = end


def _png_profile(body: bytes) -> bytes | None:
    """The profile of the chunk iCCP: its name, a NUL, the method of compression (0), the compressed profile."""
    method_and_content = body.partition(b"\0")[2]
    is_known = method_and_content[:1] == b"\0"
    profile = _inflate(method_and_content[1:], _MAX_PROFILE_BYTES) if is_known else None
    return _usable_profile(profile or b"")


def _png_text(chunk: bytes) -> bytes | None:
    """The text of a chunk without its keyword; None if it is damaged or too large."""
    name, body = chunk[:4], chunk[4:]
    if name == b"tEXt":
        text: bytes | None = body
    elif name == b"zTXt":
        text = _inflate(body[1:], _MAX_TEXT_BYTES)
    else:
        is_compressed, fields = body[:1] == b"\1", body[2:].split(b"\0", 2)  # language, translated keyword, text
        text = _inflate(fields[-1], _MAX_TEXT_BYTES) if is_compressed else fields[-1]
    return text if text is not None and len(text) <= _MAX_TEXT_BYTES else None


def _exif_from_text(texts: Mapping[bytes, bytes]) -> bytes | None:
    """EXIF data as ImageMagick writes it: a line with a name, one with the length, and lines of hexadecimal digits."""
    chunk = next((texts[keyword] for keyword in _PNG_EXIF_TEXTS if keyword in texts), None)
    lines = ((chunk and _png_text(chunk)) or b"").strip().split(b"\n")
    try:
        return bytes.fromhex(b"".join(lines[2:]).decode("ascii")) or None
    except ValueError:
        return None


def _inflate(data: bytes, at_most: int) -> bytes | None:
    """Decompress; None if the data is damaged or its content larger than `at_most` bytes."""
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(data, at_most)
    except zlib.error:
        return None
    return content if unpacker.eof else None


# --- WebP ----------------------------------------------------------------------------------------------------------


def _webp(data: bytes) -> PictureFile:
    found: dict[bytes, bytes] = {}
    start = 12
    while start + 8 <= len(data):
        name, size = data[start : start + 4], int.from_bytes(data[start + 4 : start + 8], "little")
        if name in (b"ICCP", b"EXIF", b"XMP "):
            found.setdefault(name, data[start + 8 : start + 8 + size])
        start += 8 + size + size % 2
    return PictureFile(
        kind="WEBP",
        pixels=data,
        profile=_usable_profile(found.get(b"ICCP", b"")),
        exif=found.get(b"EXIF"),
        xmp=found.get(b"XMP "),
    )
