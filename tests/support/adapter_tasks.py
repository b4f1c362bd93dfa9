"""An `AdapterTask` on a tiny backbone and the examples of `tiny_examples`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.training.adapter_loss import AdapterModule
from model.training.adapter_task import AdapterTask
from model.training.target_sizes import Phase
from tests.support.tiny_examples import SIDE, picture, rows
from tests.support.tiny_models import ENCODERS


def make_task(folder: Path, **changes: Any) -> AdapterTask:
    settings = {"drop_text": 0.05, "drop_image": 0.05, "drop_both": 0.05, "rows": rows, **changes}
    phases = (Phase(0, SIDE),)
    return AdapterTask(backbone=str(folder), encoders=ENCODERS, picture=picture, phases=phases, seed=1, **settings)


def randomize_values(module: AdapterModule) -> None:
    """A fresh adapter's visual values are zero: it would say nothing."""
    for linear in module.adapter.to_v_vision.values():
        assert isinstance(linear, torch.nn.Linear)
        torch.nn.init.normal_(linear.weight)


def example(batch: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """A batch of that example alone."""
    return {name: tensor if len(tensor) == 1 else tensor[row : row + 1] for name, tensor in batch.items()}
