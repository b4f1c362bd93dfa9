from __future__ import annotations

import torch

from tests.benchmarks.zero_memory import (
    Memory,
    Model,
    ZeroStage,
    deepspeed_estimate,
    formula,
    living_bytes,
    living_tensors,
    markdown,
)


def test_the_formula_by_hand() -> None:
    """Weights and gradients 4 + 4, moments 8, copy 4 except in stage 0; two workers halve what is partitioned."""
    assert [formula(stage, 2) for stage in (0, 1, 2, 3)] == [16, 4 + 4 + 6, 4 + 8, 10]
    assert [formula(stage, 1) for stage in (0, 1, 2, 3)] == [16, 20, 20, 20]


def test_deepspeed_s_estimate() -> None:
    assert [deepspeed_estimate(stage, 2, 10**6) for stage in (0, 1, 2, 3)] == [None, None, 2 + 9, 9]


def test_a_storage_is_counted_once() -> None:
    whole = torch.zeros(10, 10)
    assert living_bytes([whole, whole[3:], whole.view(-1), torch.zeros(2, dtype=torch.float64)]) == 400 + 16


def test_a_gradient_that_python_has_not_seen_counts() -> None:
    before = living_bytes(living_tensors())
    weight = torch.ones(1000, requires_grad=True)
    (weight * 2).sum().backward()
    assert living_bytes(living_tensors()) - before == 2 * 4000


def test_the_table_is_in_bytes_per_trained_parameter() -> None:
    model = Model(width=10, layers=2, frozen_layers=3)
    assert (model.parameters, model.frozen_bytes) == (200, 1200)
    found: dict[ZeroStage, Memory] = {2: Memory(tensors=2400, process=3000)}
    row = markdown(model, found, {2: Memory(tensors=2500, process=0)}).splitlines()[-1]
    assert row == "| 2 | 12.0 | 12.00 | 12.50 | 15.00 | 11.0 |"
