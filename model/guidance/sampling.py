"""One step of a diffusers scheduler."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def scheduler_step(
    scheduler: Any, prediction: Tensor, timestep: Tensor, latents: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    """The latents (B, 4, h, w) of the next step; `generators`, one a row, serve schedulers that add noise."""
    accepted = inspect.signature(scheduler.step).parameters
    options = {"generator": list(generators)} if "generator" in accepted else {}
    return scheduler.step(prediction, timestep, latents, **options).prev_sample
