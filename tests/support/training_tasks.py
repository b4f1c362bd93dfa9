"""Small training problems for tests of the trainer; Ray's workers import this module."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.errors import ModelError
from model.training.task import Prepared


class LinearModule(nn.Module):
    """Least squares with input noise, which makes the result depend on the engine's random state."""

    seen: Tensor

    def __init__(self, noise: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        self.scale = nn.Parameter(torch.tensor(1.5))  # a parameter without dimensions, as CLIP has one
        self.register_buffer("seen", torch.zeros(()))
        self.noise = noise

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        noisy = batch["x"] + self.noise * torch.randn_like(batch["x"])
        loss = nn.functional.mse_loss(self.scale * self.layers(noisy).float(), batch["y"])
        return {"loss": loss, "twice": 2 * loss.detach()}


@dataclass(frozen=True, kw_only=True)
class LinearTask:
    """Fits a fixed function; the workers share the examples of a step.

    Attributes:
        kill_at: Before this step the worker `bad_rank` kills itself by SIGKILL, once (it writes `marker`).
        fail_at: From this step on the workers `failing_ranks` raise.
        starve_at: In this step each worker allocates more memory than there is.
        spoil: In these steps an example of the worker `bad_rank` is not a number.
        explode: In these steps an example of the worker `bad_rank` is a very large number.
        fill_at: Before this step the file `marker` becomes one whose disk is full.
        stop_at: Before this step `marker`, the request to stop, is written once.
    """

    batch_size: int = 16
    noise: float = 0.1
    seconds_a_step: float = field(default=0.0, compare=False)
    kill_at: int | None = field(default=None, compare=False)
    bad_rank: int = field(default=1, compare=False)
    fail_at: int | None = field(default=None, compare=False)
    failing_ranks: tuple[int, ...] = field(default=(0, 1), compare=False)
    starve_at: int | None = field(default=None, compare=False)
    spoil: tuple[int, ...] = field(default=(), compare=False)
    explode: tuple[int, ...] = field(default=(), compare=False)
    fill_at: int | None = field(default=None, compare=False)
    stop_at: int | None = field(default=None, compare=False)
    marker: Path | None = None

    def module(self) -> nn.Module:
        return LinearModule(self.noise)

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        if self.fail_at is not None and step >= self.fail_at and rank in self.failing_ranks:
            raise ModelError("the picture 'abc' is not a picture")
        if step == self.starve_at:
            torch.empty(2**50)
        if step == self.kill_at and rank == self.bad_rank and self.marker and not self.marker.exists():
            self.marker.write_text(json.dumps({"pid": os.getpid()}))
            os.kill(os.getpid(), signal.SIGKILL)
        if step == self.stop_at and self.marker:
            self.marker.touch()
        if step == self.fill_at and self.marker:
            self.marker.parent.mkdir(parents=True)
            self.marker.symlink_to("/dev/full")  # every write to it fails as on a full disk
        time.sleep(self.seconds_a_step)
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(self.batch_size, 8, generator=generator)
        y = torch.sin(x.sum(1, keepdim=True))
        share = self.batch_size // world
        mine = {"x": x[rank * share : (rank + 1) * share], "y": y[rank * share : (rank + 1) * share]}
        if step in self.spoil and rank == self.bad_rank:
            mine["y"][0] = torch.nan
        if step in self.explode and rank == self.bad_rank:
            mine["y"][0] = 1e4
        return mine

    def describe(self, step: int) -> str:
        return f"numbers of seed {step}"

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


@dataclass(frozen=True)
class LinearFeed:
    """A feed of a task's batches."""

    task: LinearTask

    def prepare(self, step: int, rank: int, world: int) -> Prepared:
        return {name: tensor.numpy() for name, tensor in self.task.batch(step, rank, world).items()}


@dataclass(frozen=True, kw_only=True)
class FedLinearTask(LinearTask):
    """The same task with a feed, whose steps take `seconds_a_step`.

    Attributes:
        seconds_to_encode: Duration of `encode`.
    """

    seconds_to_encode: float = field(default=0.0, compare=False)

    @property
    def feed(self) -> LinearFeed:
        return LinearFeed(self)

    def encode(self, prepared: Prepared, step: int, rank: int, world: int) -> dict[str, Tensor]:
        time.sleep(self.seconds_to_encode)
        return {name: torch.tensor(array) for name, array in prepared.items()}
