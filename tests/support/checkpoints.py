"""Checkpoints as the workers of a training write them."""

from __future__ import annotations

from typing import Any

import torch

from stages.training.checkpoints import Checkpoint, CheckpointFolder

STATE: dict[str, Any] = {"step": 100, "loss": 0.5, "config": {}}


def write(folder: CheckpointFolder, step: int, loss: float | None = 0.5, workers: int = 2) -> Checkpoint:
    """Write the checkpoint after `step` steps; the last worker's share comes first."""
    checkpoint = folder.at(step)
    for rank in reversed(range(workers)):
        state = {**STATE, "step": step, "loss": loss} if rank == 0 else None
        checkpoint.write_share(rank, workers, {f"weight/{rank}": torch.full((2, 3), float(rank))}, state)
    return checkpoint
