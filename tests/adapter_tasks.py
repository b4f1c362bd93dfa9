"""An `AdapterTask` on a tiny backbone and pictures made of noise."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_models import ENCODERS, RESOLUTION
from torch import Tensor

from model.adapter_loss import AdapterModule
from model.adapter_training import AdapterTask, PlanRow

BATCH = 4


def picture(picture_id: str) -> bytes:
    """A picture that depends on its id; ids that begin with "wide" are not square."""
    width = 48 if picture_id.startswith("wide") else RESOLUTION
    pixels = np.random.default_rng(list(picture_id.encode())).integers(0, 255, (RESOLUTION, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return b"no picture" if picture_id == "broken" else stream.getvalue()


def rows(step: int) -> list[PlanRow]:
    names, sources = ("a", "b", "wide", "c"), ("multiview", "image_text", "image_text", "multiview")
    places = 0.2, 0.7, 0.01 * step, 0.9
    return [
        PlanRow(slot, sources[slot], f"{names[slot]}{step}", names[slot], "a cat in", 1 + 0.5 * slot, *places)
        for slot in range(BATCH)
    ]


def make_task(folder: Path, **changes: Any) -> AdapterTask:
    settings = {"drop_text": 0.05, "drop_image": 0.05, "drop_both": 0.05, "rows": rows, **changes}
    return AdapterTask(
        backbone=str(folder), encoders=ENCODERS, picture=picture, resolution=RESOLUTION, seed=1, **settings
    )


def randomise_values(module: AdapterModule) -> None:
    """A fresh adapter's visual values are zero: it would say nothing."""
    for linear in module.adapter.to_v_vision.values():
        assert isinstance(linear, torch.nn.Linear)
        torch.nn.init.normal_(linear.weight)


def example(batch: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """A batch of that example alone."""
    return {name: tensor if len(tensor) == 1 else tensor[row : row + 1] for name, tensor in batch.items()}
