"""From img2dataset's shards to our datasets: one shard in, one part of `samples` and of `rejected` out."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from stages.datasets import write_part
from stages.schemas import LAION_SCORES, REJECTED, SAMPLES

JPEG_QUALITY = 95  # img2dataset's own

#: How to turn a picture upright, by the words in which exifread tells its orientation.
UPRIGHT = {
    "Mirrored horizontal": Image.Transpose.FLIP_LEFT_RIGHT,
    "Rotated 180": Image.Transpose.ROTATE_180,
    "Mirrored vertical": Image.Transpose.FLIP_TOP_BOTTOM,
    "Mirrored horizontal then rotated 90 CCW": Image.Transpose.TRANSPOSE,
    "Rotated 90 CW": Image.Transpose.ROTATE_270,
    "Mirrored horizontal then rotated 90 CW": Image.Transpose.TRANSVERSE,
    "Rotated 90 CCW": Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, kw_only=True)
class ShardSummary:
    """What became of a shard's rows: the samples, the rejected rows by reason, and again by what exactly was said."""

    samples: int
    rejected: Counter[str] = field(default_factory=Counter)
    details: Counter[str] = field(default_factory=Counter)


def convert_shard(scratch: Path, number: int, rows_per_shard: int, samples_folder: Path) -> ShardSummary:
    """Write part `number` of the samples, and of `scratch/rejected`.

    Every row that was asked for is in one of the two, also one that img2dataset has lost.
    """
    asked = pq.read_table(scratch / "urls.parquet").slice(number * rows_per_shard, rows_per_shard).to_pylist()
    shard = pq.read_table(scratch / "shards" / f"{number:05d}.parquet")
    fetched = {row["sample_id"]: row for row in shard.to_pylist()}
    samples: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for row in asked:
        outcome = fetched.get(row["sample_id"], {"status": "lost", "error_message": "img2dataset returned no row"})
        sample = _sample(row, outcome) if outcome["status"] == "success" else None
        if sample is not None:
            samples.append(sample)
        else:
            rejected.append(_rejected(row, outcome))
    write_part(samples_folder, number, pa.Table.from_pylist(samples, schema=SAMPLES), SAMPLES)
    write_part(scratch / "rejected", number, pa.Table.from_pylist(rejected, schema=REJECTED), REJECTED)
    return ShardSummary(
        samples=len(samples),
        rejected=Counter(row["reason"] for row in rejected),
        details=Counter(row["detail"] for row in rejected),
    )


def _sample(row: dict[str, Any], outcome: dict[str, Any]) -> dict[str, Any] | None:
    """The row with its picture; None when the bytes that img2dataset encoded are no picture."""
    try:
        picture, size = upright_rgb(outcome["jpg"], outcome["exif"])
    except (UnidentifiedImageError, OSError) as error:
        outcome |= {"status": "failed_to_resize", "error_message": str(error)}
        return None
    turned = size != (outcome["width"], outcome["height"])
    original = (outcome["original_width"], outcome["original_height"])
    return {
        "sample_id": row["sample_id"],
        "url": row["url"],
        "caption": row["caption"],
        "picture": picture,
        "width": size[0],
        "height": size[1],
        "original_width": original[1] if turned else original[0],
        "original_height": original[0] if turned else original[1],
        **{name: row[name] for name in LAION_SCORES.values()},
    }


def upright_rgb(picture: bytes, exif: str | None) -> tuple[bytes, tuple[int, int]]:
    """The picture as three-channel JPEG in its upright orientation, and its size (width, height).

    img2dataset keeps grey pictures grey and leaves the rotation to the EXIF tags, which do not survive. Pictures that
    are upright and coloured come back byte for byte.
    """
    orientation = json.loads(exif or "{}").get("Image Orientation", "")
    with Image.open(io.BytesIO(picture)) as image:
        if image.mode == "RGB" and orientation not in UPRIGHT:
            return picture, image.size
        fixed = image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image
        buffer = io.BytesIO()
        fixed.convert("RGB").save(buffer, format="JPEG", quality=JPEG_QUALITY)
        return buffer.getvalue(), fixed.size


def _rejected(row: dict[str, Any], outcome: dict[str, Any]) -> dict[str, Any]:
    detail = " ".join(str(outcome["error_message"] or "unknown").split())[:200]
    return {
        "sample_id": row["sample_id"],
        "url": row["url"],
        "caption": row["caption"],
        "reason": reason_of(outcome["status"], detail),
        "detail": detail,
    }


def reason_of(status: str, message: str) -> str:
    """Our short word for img2dataset's status and message."""
    if status == "lost":
        return "lost"
    if status == "failed_to_download":
        return "download"
    return {"image too small": "too_small", "aspect ratio too large": "aspect_ratio"}.get(message, "decode")
