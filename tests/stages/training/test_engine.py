"""The engine in one process against bare PyTorch, for every ZeRO stage."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stages.contract import StageError
from stages.training.config import TrainerConfig
from stages.training.engine import Engine, LossScale, deepspeed_config, learning_rate, micro_batches
from tests.support.training_tasks import LinearModule, LinearTask

pytestmark = pytest.mark.slow

CONFIG = TrainerConfig(learning_rate=1e-2, weight_decay=0.1, gradient_clip=0.5)
STAGES = (0, 1, 2, 3)
STEPS = 4


def configured(**changes: Any) -> TrainerConfig:
    return dataclasses.replace(CONFIG, **changes)


def start() -> LinearModule:
    torch.manual_seed(7)
    module = LinearModule()
    module.scale.data = module.scale.data.view(1)  # DeepSpeed cannot take a parameter without dimensions
    return module


def batch(step: int) -> dict[str, Tensor]:
    return LinearTask().batch(step, 0, 1)


def weights(engine: Engine) -> dict[str, Tensor]:
    import deepspeed

    parameters = dict(engine.module.named_parameters())
    if engine.zero_stage < 3:
        return {name: weight.detach().clone() for name, weight in parameters.items()}
    with deepspeed.zero.GatheredParameters(list(parameters.values())):
        return {name: weight.detach().clone() for name, weight in parameters.items()}


def bare_weights(
    accumulation: int = 1, scaler: torch.amp.GradScaler | None = None, rates: Mapping[str, float] | None = None
) -> dict[str, Tensor]:
    """The same training without DeepSpeed: torch's AdamW, clipping and, for fp16, autocast and loss scale."""
    module = start()
    groups = [
        {"params": [weight], "lr": CONFIG.learning_rate * (rates or {}).get(name, 1.0)}
        for name, weight in module.named_parameters()
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, CONFIG.beta2), weight_decay=CONFIG.weight_decay)
    for step in range(STEPS):
        torch.manual_seed(step)
        optimizer.zero_grad()
        for part in range(accumulation):
            share = {name: tensor.chunk(accumulation)[part] for name, tensor in batch(step).items()}
            with torch.autocast("cpu", torch.float16, enabled=scaler is not None):
                loss = module(share)["loss"] / accumulation
            (scaler.scale(loss) if scaler else loss).backward()
        if scaler:
            scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(module.parameters(), CONFIG.gradient_clip)
        scaler.step(optimizer) if scaler else optimizer.step()
        if scaler:
            scaler.update()
    return {name: weight.detach() for name, weight in module.named_parameters()}


def engine_weights(config: TrainerConfig, rates: Mapping[str, float] | None = None) -> dict[str, Tensor]:
    engine = Engine(start(), config, torch.device("cpu"), rates)
    for step in range(STEPS):
        torch.manual_seed(step)
        engine.backward(micro_batches(batch(step), config.accumulation))
        assert engine.step(CONFIG.learning_rate)
    return weights(engine)


@pytest.mark.parametrize("stage", STAGES)
def test_deepspeeds_settings_come_from_the_files_and_the_configuration(stage: int) -> None:
    settings = deepspeed_config(configured(zero_stage=stage, accumulation=3, gradient_clip=0.25))
    assert settings["zero_optimization"]["stage"] == stage
    assert settings["gradient_accumulation_steps"] == 3
    assert settings["gradient_clipping"] == 0.25
    assert "auto" not in settings.values()


@given(st.integers(1, 500), st.integers(0, 50))
def test_the_learning_rate_warms_up_and_decays(steps: int, warm_up: int) -> None:
    config = configured(warmup_steps=warm_up)
    rates = [learning_rate(step, steps, config) for step in range(steps)]
    assert all(0 < rate <= config.learning_rate for rate in rates)
    after = rates[max(0, warm_up - 1) :]
    assert after == sorted(after, reverse=True)


def test_a_constant_learning_rate_stays_after_its_warm_up() -> None:
    config = configured(schedule="constant", warmup_steps=4, learning_rate=1.0)
    assert [learning_rate(step, 8, config) for step in range(8)] == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]


@given(st.integers(1, 5), st.integers(1, 6))
def test_micro_batches_are_the_batch(count: int, size: int) -> None:
    examples = count * size
    whole = {"x": torch.arange(2 * examples).view(examples, 2), "y": torch.arange(examples), "t": torch.tensor(5)}
    parts = micro_batches(whole, count)
    assert [len(part["x"]) for part in parts] == [size] * count
    for name in ("x", "y"):
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])
    assert all(part["t"] == 5 for part in parts)


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(StageError, match=r"^7 examples a worker cannot be cut into 2 equal micro batches: set .* of 7"):
        micro_batches({"x": torch.zeros(7, 2)}, 2)


def test_the_loss_scale_is_that_of_torchs_scaler() -> None:
    scaler, ours = torch.amp.GradScaler("cpu"), LossScale()
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], 1e-9)
    for step in range(4100):
        finite = step not in (3, 4, 2500)
        scaler.scale(weight.sum() * (1.0 if finite else math.inf)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        ours.update(finite)
        assert ours.scale == scaler.get_scale(), step
    assert ours.scale == 2.0**14, "two halvings, a doubling, a halving"


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_steps_are_those_of_bare_pytorch(process_group: None, stage: int, accumulation: int) -> None:
    expected = bare_weights(accumulation)
    found = engine_weights(configured(zero_stage=stage, accumulation=accumulation))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_have_their_own_rates(process_group: None, stage: int) -> None:
    rates = {"layers.0.bias": 10.0, "layers.2.weight": 0.5, "scale": 10.0}
    expected, found = bare_weights(rates=rates), engine_weights(configured(zero_stage=stage), rates)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(expected["layers.0.bias"], bare_weights()["layers.0.bias"], atol=1e-3)


def test_accumulation_changes_only_the_rounding() -> None:
    whole, cut = bare_weights(), bare_weights(4)
    for name, weight in whole.items():
        torch.testing.assert_close(cut[name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_fp16_is_that_of_bare_pytorch(process_group: None, stage: int) -> None:
    """On a CPU, where the configuration refuses fp16: its arithmetic is the same there, only slow."""
    expected = bare_weights(scaler=torch.amp.GradScaler("cpu"))
    found = engine_weights(configured(zero_stage=stage, precision="fp16", use_gpu=True))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e4])
@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_not_finite_or_a_loss_that_is_too_large_changes_nothing(
    process_group: None, stage: int, bad: float
) -> None:
    engine = Engine(start(), configured(zero_stage=stage), torch.device("cpu"))
    engine.backward([batch(0)])
    norm = engine.step(1e-2)
    assert norm is not None
    assert norm > 0
    before = weights(engine)
    spoiled = batch(1)
    spoiled["y"][3] = bad
    engine.backward([spoiled], max_loss=1e3)
    assert engine.step(1e-2) is None
    after = weights(engine)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    engine.backward([batch(2)])
    assert engine.step(1e-2) is not None
    moved = weights(engine)
    assert not torch.equal(moved["layers.0.weight"], after["layers.0.weight"])


def test_a_gradient_too_large_for_fp16_lowers_the_scale(process_group: None) -> None:
    engine = Engine(start(), configured(zero_stage=1, precision="fp16", use_gpu=True), torch.device("cpu"))
    assert engine.loss_scale is not None
    assert not engine.cannot_lower_scale
    large = batch(0)
    large["y"] *= 1e3
    engine.backward([large])
    assert engine.step(1e-2) is None
    assert engine.loss_scale.scale == 2.0**15
    norm = None
    while norm is None:
        engine.backward([large])
        norm = engine.step(1e-2)
    assert 1 <= engine.loss_scale.scale <= 2.0**15
