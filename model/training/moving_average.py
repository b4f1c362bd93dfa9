"""The exponential moving average of the weights of a model in training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class MovingAverage:
    """mean <- decay * mean + (1 - decay) * weight, starting with the initial weights.

    Attributes:
        mean: By the weights' names, with their devices and shapes.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], decay: float) -> None:
        self._weights = dict(weights)
        self._decay = decay
        self.mean: dict[str, Tensor] = {name: weight.detach().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights to the mean."""
        torch._foreach_lerp_(list(self.mean.values()), list(self._weights.values()), 1 - self._decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Replace the weights with their means."""
        for name, weight in self._weights.items():
            weight.copy_(self.mean[name])
