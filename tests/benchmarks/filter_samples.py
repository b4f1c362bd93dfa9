"""Samples as the stage `ingest` leaves them, for measurements of the stage `filter`, and a call of it."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from pipelines.config.loading import load_config
from stages.contract import Reporter, StageContext, StageError
from stages.data.datasets import write_part
from stages.data.jpeg import JPEG_QUALITY
from stages.data.schemas import SAMPLES, content_id
from stages.filter import stage as filter_stage

SIDE = 256
ROWS_PER_PART = 1000
_SHAPES = 12  # colours across: no two pictures are near duplicates
_GRAIN = 2.5  # standard deviation, of 255: some 25 kB a picture, as LAION-400M's have at this size


def write_samples(folder: Path, pictures: int) -> None:
    """Write the dataset `folder/samples`: JPEGs of `SIDE` x `SIDE`, all of them good and different."""
    rng = np.random.default_rng(0)
    grain = [rng.normal(0, _GRAIN, (SIDE, SIDE, 1)).astype(np.int16) for _ in range(16)]
    for number, start in enumerate(range(0, pictures, ROWS_PER_PART)):
        rows = []
        for place in range(start, min(start + ROWS_PER_PART, pictures)):
            url, caption = f"https://host/{place}.jpg", f"a photograph of the thing with the number {place}"
            shapes = Image.fromarray(rng.integers(0, 256, (_SHAPES, _SHAPES, 3), dtype=np.uint8))
            smooth = np.asarray(shapes.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.int16)
            pixels = (smooth + grain[place % len(grain)]).clip(0, 255).astype(np.uint8)
            rows.append(
                {
                    "sample_id": content_id(url, caption),
                    "url": url,
                    "caption": caption,
                    "picture": _jpeg(pixels),
                    **dict.fromkeys(("width", "height"), SIDE),
                    **dict.fromkeys(("original_width", "original_height"), 2 * SIDE),
                    "similarity": 0.35,
                    "unsafe": 0.1,
                    "watermark": 0.1,
                    "aesthetic": 6.0,
                    "language": "en",
                }
            )
        write_part(folder / "samples", number, pa.Table.from_pylist(rows, schema=SAMPLES), SAMPLES)


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def run_filter(samples: Path, folder: Path, pictures: int) -> None:
    """The stage with the rules of the profile sd15 on `samples/samples`, in `folder`, which is removed afterwards.

    Raises:
        StageError: It has not kept all pictures: the measurement would not be what it says.
    """
    for name in ("output", "scratch"):
        (folder / name).mkdir(parents=True)
    context = StageContext(
        config=load_config("sd15"),
        inputs={"ingest": samples},
        output=folder / "output",
        scratch=folder / "scratch",
        report=Reporter(emit=lambda event: None),
    )
    rows = filter_stage.run(context).rows
    shutil.rmtree(folder)
    if rows != {"samples": pictures, "rejected": 0}:
        raise StageError(f"the filter should keep all of {pictures} pictures, but it has written {rows}.")
