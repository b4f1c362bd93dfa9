"""The optimizers of a training: AdamW for all weights, or Muon for the matrices and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stages.training.config import TrainerConfig

_ADAMW_STATE = ("exp_avg", "exp_avg_sq")
_MUON_STATE = ("momentum_buffer",)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for weight matrices, AdamW for all other weights, with one learning rate.

    Muon's update is the momentum with all its singular values near 1 (https://kellerjordan.github.io/posts/muon),
    scaled to the root mean square of AdamW's updates ("Muon is Scalable for LLM Training", Liu et al. 2025, Sec. 2.2).
    It needs each matrix whole.

    Args:
        groups: Groups of parameters, as for any optimizer; a group has only matrices, or none.
        config: Of the trainer.
    """

    def __init__(self, groups: list[dict[str, Any]], config: TrainerConfig) -> None:
        super().__init__(groups, {"lr": config.learning_rate, "weight_decay": config.weight_decay})
        self._parts: list[torch.optim.Optimizer] = []
        matrices = [group for group in self.param_groups if is_matrix(group["params"][0])]
        others = [group for group in self.param_groups if not is_matrix(group["params"][0])]
        if matrices:
            self._parts.append(torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw"))
        if others:
            self._parts.append(torch.optim.AdamW(others, betas=(0.9, config.beta2), fused=True))
        for part in self._parts:  # so that learning rates and moments are seen from here
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of both; returns the loss of `closure`, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss


def is_matrix(weight: Tensor) -> bool:
    """Whether Muon trains this weight."""
    return weight.ndim == 2


def new_optimizer(
    weights: Mapping[str, nn.Parameter], config: TrainerConfig, rates: Mapping[str, float]
) -> tuple[torch.optim.Optimizer, list[float]]:
    """The optimizer of the named weights.

    Args:
        weights: Name -> weight.
        config: Of the trainer.
        rates: Name -> factor of the learning rate, where it is not 1.

    Returns:
        The optimizer, and the factor of each of its groups.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, weight in weights.items():
        by_muon = config.optimizer == "muon" and is_matrix(weight)
        groups.setdefault((rates.get(name, 1.0), by_muon), []).append(weight)
    factors = [factor for factor, _ in groups]
    listed: list[dict[str, Any]] = [{"params": group} for group in groups.values()]
    if config.optimizer == "muon":
        return MuonWithAdamW(listed, config), factors
    betas = (0.9, config.beta2)
    adamw = torch.optim.AdamW(listed, config.learning_rate, betas=betas, weight_decay=config.weight_decay, fused=True)
    return adamw, factors


def state_names(weight: Tensor, config: TrainerConfig) -> tuple[str, ...]:
    """The names of the tensors that the optimizer keeps of a weight."""
    return _MUON_STATE if config.optimizer == "muon" and is_matrix(weight) else _ADAMW_STATE
