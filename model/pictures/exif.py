"""What EXIF data says about the pixels: which side is up, and whether their colours are Adobe RGB's.

Only the few fields that say so are read, none of which lies outside its directory. So damage elsewhere does not matter,
such as a cut end or a text's wrong place, for which Pillow gives up the directory.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping

from model.pictures.containers import PictureFile

_EXIF_DIRECTORY, _INTEROPERABILITY_DIRECTORY = 0x8769, 0xA005
_ORIENTATION, _COLOUR_SPACE, _INTEROPERABILITY_INDEX = 0x0112, 0xA001, 0x0001
_ADOBE_RGB = 2  # not in the standard; some cameras write it
_UNCALIBRATED = 0xFFFF
_OPTION_FILE = b"R03"  # interoperability index of "DCF option files", whose colours are Adobe RGB's
_SHORT, _LONG = 3, 4
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)\s*([1-8])\s*[\"'<]")


def orientation(file: PictureFile) -> int:
    """The orientation, 1 to 8, from the EXIF data, else from XMP; 1 (upright) if neither can be read.

    So does Pillow's `ImageOps.exif_transpose`.
    """
    if not (file.exif or file.xmp):  # most files
        return 1
    exif = _Exif(file.exif or b"")
    fields = exif.directory(exif.first)
    if _ORIENTATION in fields:
        value = exif.number(fields[_ORIENTATION])
        return value if 1 <= value <= 8 else 1
    found = _XMP_ORIENTATION.search(file.xmp or b"")
    return int(found[1]) if found else 1


def is_adobe_rgb(file: PictureFile) -> bool:
    """Whether a camera has marked the colours as those of Adobe RGB (1998) without a profile (DCF 2.0)."""
    exif = _Exif(file.exif or b"")
    fields = exif.follow(exif.directory(exif.first), _EXIF_DIRECTORY)
    space = exif.number(fields.get(_COLOUR_SPACE, b""))
    index = exif.follow(fields, _INTEROPERABILITY_DIRECTORY).get(_INTEROPERABILITY_INDEX, b"")
    return space == _ADOBE_RGB or (space == _UNCALIBRATED and index[8:11] == _OPTION_FILE)


class _Exif:
    """A TIFF structure. What lies outside it reads as nothing."""

    def __init__(self, data: bytes) -> None:
        self.data = re.sub(rb"^(?:Exif\0\0)+", b"", data)
        self.order = {b"II": "<", b"MM": ">"}.get(self.data[:2], "")
        self.first = self._unpack("I", self.data[4:8]) if self.order else 0

    def directory(self, place: int) -> Mapping[int, bytes]:
        """The entries of the directory at a place, 12 bytes each, by tag."""
        count = self._unpack("H", self.data[place : place + 2]) if place else 0
        return dict(self._entries(place + 2, count))

    def follow(self, fields: Mapping[int, bytes], tag: int) -> Mapping[int, bytes]:
        """The directory that a field refers to; empty if there is none."""
        return self.directory(self.number(fields.get(tag, b"")))

    def number(self, entry: bytes) -> int:
        """The value of an entry with one whole number; 0 for any other."""
        kind, count = self._unpack("H", entry[2:4]), self._unpack("I", entry[4:8])
        if count != 1 or kind not in (_SHORT, _LONG):
            return 0
        return self._unpack("H", entry[8:10]) if kind == _SHORT else self._unpack("I", entry[8:12])

    def _entries(self, start: int, count: int) -> Iterator[tuple[int, bytes]]:
        for place in range(start, min(start + 12 * count, len(self.data) - 11), 12):
            entry = self.data[place : place + 12]
            yield self._unpack("H", entry[:2]), entry

    def _unpack(self, kind: str, data: bytes) -> int:
        code = self.order + kind
        return int(struct.unpack(code, data)[0]) if len(data) == struct.calcsize(code) else 0
