"""A small training plan with its pictures, as the stages before `train_adapter` write them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from stages.data.datasets import write_dataset
from stages.data.schemas import FRAMES, PLAN, SAMPLES

STEPS, BATCH = 6, 4


def encoded_picture(number: int) -> bytes:
    """Noise, as PNG."""
    pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def filled(schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Table:
    """A table of these rows; missing columns get defaults."""
    defaults = {pa.string(): "x", pa.int32(): 64, pa.binary(): b""}
    filled = [{field.name: defaults.get(field.type) for field in schema} | row for row in rows]
    return pa.Table.from_pylist(filled, schema=schema)


def plan_row(step: int, slot: int) -> dict[str, Any]:
    multiview = (step + slot) % 2 == 0
    return {
        "step": step,
        "slot": slot,
        "source": "multiview" if multiview else "image_text",
        "reference_id": f"frame-{slot}" if multiview else f"sample-{slot}",
        "target_id": f"frame-{slot + 1}" if multiview else f"sample-{slot}",
        "caption": "a photo of a mug",
        "crop_ratio": 1.0 + 0.3 * slot,
        **{name: 0.5 for name in ("crop_x", "crop_y", "target_crop_x", "target_crop_y")},
        **{name: 64 for name in ("height", "width", "original_height", "original_width")},
    }


def write_tiny_plan(folder: Path) -> None:
    """Write `filter/samples`, `multiview/frames` and `curriculum/plan` into `folder`."""
    samples = [{"sample_id": f"sample-{n}", "picture": encoded_picture(n)} for n in range(BATCH)]
    frames = [
        {
            "frame_id": f"frame-{n}",
            "picture": encoded_picture(100 + n),
            "rotation": [1.0, 0, 0, 0],
            "translation": [0.0, 0, 0],
        }
        for n in range(BATCH + 1)
    ]
    plan = [plan_row(step, slot) for step in range(STEPS) for slot in range(BATCH)]
    write_dataset(folder / "filter" / "samples", filled(SAMPLES, samples), SAMPLES)
    write_dataset(folder / "multiview" / "frames", filled(FRAMES, frames), FRAMES)
    write_dataset(folder / "curriculum" / "plan", filled(PLAN, plan), PLAN, order=("step", "slot"))
