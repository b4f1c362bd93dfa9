"""Samples in the form of the stage `ingest`, and a run of the stage `filter` on them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from pipelines.config.loading import load_config
from stages.contract import StageContext, StageError
from stages.data.datasets import write_part
from stages.data.jpeg import JPEG_QUALITY
from stages.data.schemas import SAMPLES, content_id
from stages.filter import stage as filter_stage
from tests.benchmarks.support.environment import silent_reporter
from tests.benchmarks.support.noise_pictures import jpeg

SIDE = 256
ROWS_PER_PART = 1000
_SHAPES = 12  # random colours a side, so that no two pictures are near duplicates
_GRAIN = 2.5  # standard deviation, of 255; gives about 25 kB a picture, like LAION-400M at this size


def write_samples(folder: Path, pictures: int) -> None:
    """Write the dataset `folder/samples`: different JPEGs of `SIDE` x `SIDE` pixels that pass all rules."""
    rng = np.random.default_rng(0)
    grain = [rng.normal(0, _GRAIN, (SIDE, SIDE, 1)).astype(np.int16) for _ in range(16)]
    for number, start in enumerate(range(0, pictures, ROWS_PER_PART)):
        rows = []
        for index in range(start, min(start + ROWS_PER_PART, pictures)):
            url, caption = f"https://host/{index}.jpg", f"a photograph of the thing with the number {index}"
            shapes = Image.fromarray(rng.integers(0, 256, (_SHAPES, _SHAPES, 3), dtype=np.uint8))
            smooth = np.asarray(shapes.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.int16)
            pixels = (smooth + grain[index % len(grain)]).clip(0, 255).astype(np.uint8)
            rows.append(
                {
                    "sample_id": content_id(url, caption),
                    "url": url,
                    "caption": caption,
                    "picture": jpeg(Image.fromarray(pixels), JPEG_QUALITY),
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


def run_filter(samples: Path, folder: Path, pictures: int) -> None:
    """Run the stage with the rules of the profile sd15 on `samples/samples`, in `folder`; then remove `folder`.

    Raises:
        StageError: The stage rejected pictures, so the measurement is invalid.
    """
    for name in ("output", "scratch"):
        (folder / name).mkdir(parents=True)
    context = StageContext(
        config=load_config("sd15"),
        inputs={"ingest": samples},
        output=folder / "output",
        scratch=folder / "scratch",
        report=silent_reporter(),
    )
    rows = filter_stage.run(context).rows
    shutil.rmtree(folder)
    if rows != {"samples": pictures, "rejected": 0}:
        raise StageError(
            f"the filter must keep all {pictures} pictures, but it wrote {rows}: the measurement is invalid."
        )
