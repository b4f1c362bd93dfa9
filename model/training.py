"""What a training problem looks like to the engine that runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor, nn


class TrainingTask(Protocol):
    """One training problem, independent of the engine (optimiser, precision, processes) that runs it.

    A task is a picklable dataclass of configurations and paths; it loads what it needs in `module`, once a worker.
    Everything random in it is a function of (step, rank, world): a resumed run repeats no sample and skips none.
    """

    def module(self) -> nn.Module:
        """The module to train. Its `forward(batch)` returns scalars by name: "loss", and whatever is worth a curve."""

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """This rank's share of the batch of `step` (counted from 0)."""

    def after_step(self, module: nn.Module, step: int) -> None:
        """Called after the optimiser's step, for a moving average for instance."""

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write the trained weights (safetensors beside a config.json) into `folder`. Called on rank 0 only."""
