"""The server's application in this process: a tiny real pipeline, painted with in threads instead of by Ray."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from PIL import Image

from model.adapters.adapter import VisualAdapter
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.guidance.settings import InferenceSettings
from model.painting.painter import RequestPainter
from stages.serve.config import ServeConfig
from stages.serve.painter import ModelPainter
from stages.serve.web.application import make_application
from tests.support.tiny_pipelines import CROSS, build

NAME = "realword-tiny"
TITLE = f"{NAME} version 1"
SIDE = 32  # of its pictures
SETTINGS = ServeConfig(max_picture_bytes=100_000, max_steps=50, timeout_seconds=60)


class LocalPainters(ModelPainter):
    """One painter without a queue and without batches."""

    def __init__(self, model: RequestPainter) -> None:
        super().__init__(model, TITLE, self._paint_alone)

    async def _paint_alone(self, picture: Any) -> Any:
        (painted,) = await self.paint_together([picture])
        return painted

    async def check_ready(self) -> None:
        """It always is."""


def tiny_painter(folder: Path, method: type[VisualAdapter] = RealCustomPlusAdapter) -> RequestPainter:
    """A painter of three steps, with the backbone of `tests.support.tiny_models.write_sd`."""
    settings = InferenceSettings(steps=3, mask_steps=2, mask_cross_downscales=CROSS["sd"], mask_self_downscales=[])
    return RequestPainter(pipeline=build(folder, method=method), settings=settings, title="tiny", adapter="abc")


def tiny_application(folder: Path) -> FastAPI:
    return make_application(LocalPainters(tiny_painter(folder)), NAME, SETTINGS)


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def noise_picture(seed: int = 0, side: int = 40) -> bytes:
    """A PNG of noise."""
    pixels = np.random.default_rng(seed).integers(256, size=(side, side, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels))


def half_mask(size: tuple[int, int] = (SIDE, SIDE), alpha: int = 0) -> bytes:
    """A PNG, opaque but for its left half."""
    mask = Image.new("RGBA", size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, alpha), (0, 0, size[0] // 2, size[1]))
    return encoded(mask)
