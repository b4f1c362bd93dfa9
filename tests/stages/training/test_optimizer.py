"""Muon with AdamW, in DeepSpeed's engine and by itself."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from stages.training.config import TrainerConfig
from stages.training.engine import Engine
from stages.training.optimizer import new_optimizer
from tests.support.training_tasks import LinearModule, LinearTask

CONFIG = TrainerConfig(optimizer="muon", zero_stage=0, learning_rate=1e-2, weight_decay=0.1, gradient_clip=0.5)


def stepped(weight: torch.Tensor, gradients: list[torch.Tensor], config: TrainerConfig = CONFIG) -> torch.Tensor:
    """The weight after a step for each gradient."""
    trained = nn.Parameter(weight.clone())
    optimizer, factors = new_optimizer({"weight": trained}, config, {})
    assert factors == [1.0]
    for gradient in gradients:
        trained.grad = gradient.clone()
        optimizer.step()
    return trained.detach()


@pytest.mark.parametrize("shape", [(16, 8), (8, 16), (12, 12), (64, 4)])
def test_the_update_of_a_matrix_has_singular_values_near_one_and_the_momentums_directions(
    shape: tuple[int, int],
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
    update = (weight * (1 - 0.1 * 1e-2) - stepped(weight, [gradient])) / 1e-2
    orthogonal = update / (0.2 * math.sqrt(max(shape)))
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    values = left.T @ orthogonal @ right.T
    assert ((torch.diagonal(values) > 0.6) & (torch.diagonal(values) < 1.3)).all()
    assert (values - torch.diag(torch.diagonal(values))).abs().max() < 0.1, "the iteration runs in bf16"


def test_vectors_have_adamws_update() -> None:
    generator = torch.Generator().manual_seed(1)
    weight, *gradients = (torch.randn(5, generator=generator) for _ in range(4))
    expected = stepped(weight, gradients, dataclasses.replace(CONFIG, optimizer="adamw"))
    torch.testing.assert_close(stepped(weight, gradients), expected, rtol=0, atol=0)


@pytest.mark.slow
def test_the_engines_steps_are_torchs(process_group: None) -> None:
    rates = {"layers.2.weight": 0.5, "scale": 10.0}
    expected = _bare_weights(rates)
    engine = Engine(_start(), CONFIG, torch.device("cpu"), rates)
    for step in range(4):
        torch.manual_seed(step)
        engine.backward([LinearTask().batch(step, 0, 1)])
        assert engine.step(1e-2)
    for name, weight in engine.module.named_parameters():
        torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-6, atol=1e-6)


def _start() -> LinearModule:
    torch.manual_seed(7)
    module = LinearModule()
    module.scale.data = module.scale.data.view(1)
    return module


def _bare_weights(rates: dict[str, float]) -> dict[str, torch.Tensor]:
    """The same training by an optimizer for each weight, without DeepSpeed."""
    module = _start()
    optimizers: list[torch.optim.Optimizer] = []
    for name, weight in module.named_parameters():
        rate = 1e-2 * rates.get(name, 1.0)
        if weight.ndim == 2:
            optimizers.append(torch.optim.Muon([weight], rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"))
        else:
            optimizers.append(torch.optim.AdamW([weight], rate, betas=(0.9, CONFIG.beta2), weight_decay=0.1))
    for step in range(4):
        torch.manual_seed(step)
        module.zero_grad()
        module(LinearTask().batch(step, 0, 1))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        for optimizer in optimizers:
            optimizer.step()
    return {name: weight.detach() for name, weight in module.named_parameters()}
