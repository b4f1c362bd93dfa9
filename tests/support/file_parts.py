"""Picture files made of parts: chunks of PNG, segments of JPEG, fields of EXIF."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def encode(pixels: NDArray[Any] | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.rint(pixels).astype(np.uint8))
    if kind == "JPEG":
        options = {"quality": 98, **({} if picture.mode == "L" else {"subsampling": 0}), **options}
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) if crc is None else crc)
    )


def with_chunks(png: bytes, chunks: Iterable[bytes], at_end: bool = False) -> bytes:
    """A PNG file with more chunks, before its pixels or behind them."""
    place = len(png) - 12 if at_end else 33
    return png[:place] + b"".join(chunks) + png[place:]


def raw_png(samples: NDArray[Any], depth: int, colour: int, *chunks: bytes) -> bytes:
    """A PNG of samples (height, width, channels) with 2 or 16 bits each."""
    height, width = samples.shape[:2]
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in samples]
    else:
        rows = [
            np.packbits(np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - depth :]).tobytes()
            for row in samples
        ]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def exif(*entries: tuple[int, int, int, bytes], order: str = "<", extra: bytes = b"") -> bytes:
    """A TIFF structure with the entries (tag, type, count, 4 bytes) in one directory."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    fields = b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    return head + struct.pack(order + "H", len(entries)) + fields + b"\0" * 4 + extra


def orientation(value: int, order: str = "<") -> bytes:
    return exif((0x0112, 3, 1, struct.pack(order + "H", value)), order=order)
