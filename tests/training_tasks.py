"""Small training problems for tests of the trainer. In a module of their own: Ray's workers import it."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn


class LinearModule(nn.Module):
    """Least squares; the input noise makes the result depend on the engine's random state."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        self.scale = nn.Parameter(torch.tensor(1.5))  # a parameter without dimensions, as CLIP has one
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        noisy = batch["x"] + 0.1 * torch.randn_like(batch["x"])
        loss = nn.functional.mse_loss(self.scale * self.layers(noisy).float(), batch["y"])
        return {"loss": loss, "twice": 2 * loss.detach()}


@dataclass(frozen=True, kw_only=True)
class LinearTask:
    """Fits a fixed function.

    Attributes:
        kill_at: The worker `kill_rank` ends itself with SIGKILL before this step, once (it leaves `marker` behind).
        fail_at: Every worker raises before this step, always.
        starve_at: Every worker wants more memory than there is for this step.
    """

    batch_size: int = 16
    seconds_a_step: float = 0.0
    kill_at: int | None = None
    kill_rank: int = 1
    fail_at: int | None = None
    starve_at: int | None = None
    marker: Path | None = None

    def module(self) -> nn.Module:
        return LinearModule()

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        if self.fail_at is not None and step >= self.fail_at:
            raise ValueError("the picture 'abc' is not a picture")
        if step == self.starve_at:
            torch.empty(2**50)
        if step == self.kill_at and rank == self.kill_rank and self.marker and not self.marker.exists():
            self.marker.write_text(json.dumps({"pid": os.getpid()}))
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds_a_step)
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(self.batch_size, 8, generator=generator)
        y = torch.sin(x.sum(1, keepdim=True))
        share = self.batch_size // world
        return {"x": x[rank * share : (rank + 1) * share], "y": y[rank * share : (rank + 1) * share]}

    def after_step(self, module: nn.Module, step: int) -> None:
        assert isinstance(module, LinearModule)
        module.seen += step

    def export(self, module: nn.Module, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: tensor.detach().clone() for name, tensor in module.state_dict().items()},
            folder / "model.safetensors",
        )
        (folder / "config.json").write_text("{}")
