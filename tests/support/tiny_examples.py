"""Rows of a plan and pictures of noise, in a module that Ray's data workers can import quickly."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from model.training.adapter_examples import PlanRow
from model.training.task import Prepared

BATCH = 4
SIDE = 32


def picture(picture_id: str) -> bytes:
    """A picture that depends on its id: "wide..." is not square, "large..." has twice the side, "broken" is not one."""
    height = 2 * SIDE if picture_id.startswith("large") else SIDE
    width = 48 if picture_id.startswith("wide") else height
    pixels = np.random.default_rng(list(picture_id.encode())).integers(0, 255, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return b"no picture" if picture_id == "broken" else stream.getvalue()


def rows(step: int) -> list[PlanRow]:
    names, sources = ("a", "b", "wide", "c"), ("multiview", "image_text", "image_text", "multiview")
    positions = 0.2, 0.7, 0.01 * step, 0.9
    return [
        PlanRow(
            slot,
            sources[slot],
            f"{names[slot]}{step}",
            names[slot],
            "a cat in",
            1 + 0.5 * slot,
            *positions,
            SIDE,
            SIDE,
            SIDE,
            48 if names[slot] == "wide" else SIDE,
        )
        for slot in range(BATCH)
    ]


@dataclass(frozen=True)
class NotedFeed:
    """Writes a file for each step that it prepares."""

    folder: Path

    def prepare(self, step: int, rank: int, world: int) -> Prepared:
        (self.folder / str(step)).touch()
        return {"step": np.full(1000, step)}
