"""Hostile captioned pictures in a folder as Hugging Face's `datasets` stores one, and the expected outcome of each row
in the stage filter with SETTINGS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.support.hostile_web import CAPTIONS, bodies, encode
from tests.support.picture_files import scene

SETTINGS: dict[str, Any] = dict.fromkeys(("min_aesthetic", "min_similarity", "max_unsafe", "max_watermark"))
SETTINGS |= {"min_side": 32, "max_aspect_ratio": 3.0, "min_caption_words": 1, "max_caption_characters": 1000}

SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("text", pa.string()),
        ("url", pa.string()),
        ("punsafe", pa.float64()),
        ("original_width", pa.int64()),
    ]
)
_ROWS_PER_FILE = 500
_MOST_LONG_CAPTIONS = 20  # they are a megabyte each
_BODIES = bodies()


def _turned(picture: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(picture, exif=exif)


def _grey_16(picture: Image.Image) -> bytes:
    return encode(Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) << 8), "PNG")


#: Kinds of pictures that must be kept, each applied to its own scene.
_PICTURES: list[Callable[[Image.Image], bytes]] = [
    encode,
    _turned,
    _grey_16,
    lambda picture: encode(picture, "PNG"),
    lambda picture: encode(picture, "WEBP"),
    lambda picture: encode(picture, "GIF"),
    lambda picture: encode(picture, "GIF", save_all=True, append_images=[Image.new("RGB", picture.size)]),
    lambda picture: encode(picture.convert("L")),
    lambda picture: encode(picture.convert("LA"), "PNG"),
    lambda picture: encode(picture.convert("P"), "PNG"),
    lambda picture: encode(picture.convert("1"), "PNG"),
    lambda picture: encode(picture.convert("RGBA"), "PNG"),
    lambda picture: encode(picture.convert("CMYK")),
]

Row = dict[str, Any]
#: The expected reason, and a change to a good row.
_CHANGES: list[tuple[str, Row]] = [
    ("no_picture", {"image": None}),
    ("no_picture", {"image": {"bytes": None, "path": "/etc/passwd"}}),
    ("no_caption", {"text": None}),
    ("no_caption", {"text": " \n\t\u2003"}),
    ("caption_encoding", {"text": "half a \x00 caption"}),
    ("caption_encoding", {"text": "a caf\ufffd"}),
    ("caption_characters", {"text": "long " * 200_000}),
    ("side", {"image": _BODIES["tiny"][1]}),
    ("aspect_ratio", {"image": _BODIES["wide"][1]}),
    ("single_colour", {"image": encode(Image.new("RGB", (64, 64), "red"))}),
    ("", {"punsafe": float("nan"), "original_width": 2**40}),
    ("", {"original_width": -1, "url": "javascript:alert(1)"}),
    *[
        ("undecodable", {"image": body})
        for reason, body in _BODIES.values()
        if reason in ("decode", "too_many_pixels", "wrong_type")
    ],
]


def hostile_samples(folder: Path, count: int) -> Counter[str]:
    """Write `count` rows, each kind in turn; returns the expected number of each reason ("" for rows kept)."""
    folder.mkdir()
    expected, rows = Counter[str](), []
    kinds = len(_PICTURES) + len(CAPTIONS) + len(_CHANGES) + 2
    long_captions = 0
    for number in range(count):
        kind, picture = number % kinds, scene(number)
        row: Row = {"image": encode(picture), "text": f"a picture of thing {number}"}
        reason = ""
        if kind < len(_PICTURES):
            row["image"] = _PICTURES[kind](picture)
        elif (kind := kind - len(_PICTURES)) < len(CAPTIONS):
            row["text"] = CAPTIONS[kind]
            reason = "caption_characters" if len(CAPTIONS[kind]) > SETTINGS["max_caption_characters"] else ""
        elif (kind := kind - len(CAPTIONS)) < len(_CHANGES):
            reason, change = _CHANGES[kind]
            long_captions += reason == "caption_characters"
            if reason != "caption_characters" or long_captions <= _MOST_LONG_CAPTIONS:
                row |= change
            else:
                reason = ""
        elif kind == len(_CHANGES):  # always the same picture
            row["image"] = _BODIES["jpeg"][1]
            reason = "duplicate" if number >= kinds else ""
        else:  # always the same URL and caption
            row |= {"url": "http://host/the-same.jpg", "text": "the same caption"}
            reason = "duplicate_id" if number >= kinds else ""
        if isinstance(row["image"], bytes):
            row["image"] = {"bytes": row["image"], "path": None}
        expected[reason] += 1
        rows.append(row)
        if len(rows) == _ROWS_PER_FILE or number == count - 1:
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / f"{number:06d}.parquet")
            rows = []
    return expected
