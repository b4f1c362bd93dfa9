"""Targets and curves of the diffusion loss against their definitions."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from model.errors import BackboneError
from model.training.diffusion_loss import (
    diffusion_target,
    group_means,
    min_snr_weights,
    squared_errors,
    timestep_bands,
)


def make_scheduler(**changes: object) -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 1.5."""
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **changes)


def test_velocity_is_the_derivative_of_the_noisy_latents() -> None:
    """v = d z_t / d phi where sqrt(abar) = cos phi (Salimans & Ho 2022, App. D)."""
    scheduler = make_scheduler(prediction_type="v_prediction")
    latents, noise, steps = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([10, 500, 900])
    phi = torch.arccos(scheduler.alphas_cumprod[steps].double().sqrt()).view(-1, 1, 1, 1)
    small = 1e-6
    later, sooner = (torch.cos(p) * latents + torch.sin(p) * noise for p in (phi + small, phi - small))
    velocity = diffusion_target(scheduler, latents, noise, steps)
    torch.testing.assert_close(velocity.double(), (later - sooner) / (2 * small), rtol=1e-3, atol=1e-3)


def test_unknown_prediction_type() -> None:
    scheduler = make_scheduler(prediction_type="sample")
    zeros = torch.zeros(1, 4, 2, 2)
    with pytest.raises(BackboneError, match=r"prediction_type 'sample'"):
        diffusion_target(scheduler, zeros, zeros, torch.tensor([3]))


def test_squared_errors_of_masked_positions() -> None:
    """Against a loop over the positions; what is outside a mask changes nothing."""
    predicted, target = torch.randn(3, 4, 5, 5), torch.randn(3, 4, 5, 5)
    mask = torch.zeros(3, 1, 5, 5)
    mask[0, 0, 1:3, 2:5], mask[1, 0, 4, 0], mask[2] = 1, 1, 1
    expected = []
    for example in range(3):
        counted = [
            (float(predicted[example, channel, y, x]) - float(target[example, channel, y, x])) ** 2
            for channel in range(4)
            for y in range(5)
            for x in range(5)
            if mask[example, 0, y, x]
        ]
        expected.append(sum(counted) / len(counted))
    found = squared_errors(predicted, target, mask)
    torch.testing.assert_close(found, torch.tensor(expected))
    assert torch.equal(squared_errors(predicted + 9 * (1 - mask), target, mask), found)
    torch.testing.assert_close(squared_errors(predicted, target)[2], found[2])


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_min_snr_weighs_errors_in_the_clean_latents(gamma: float) -> None:
    """The paper's own statement: || z_0 - predicted z_0 ||^2 counts min(SNR, gamma), whatever the UNet predicts.

    An error e in eps is one of e sqrt(1 - abar) / sqrt(abar) in z_0, an error e in v one of e sqrt(1 - abar).
    """
    steps = torch.tensor([0, 1, 100, 300, 500, 999])
    for kind in ("epsilon", "v_prediction"):
        scheduler = make_scheduler(prediction_type=kind)
        weights = min_snr_weights(scheduler, steps, gamma)
        for step, weight in zip(steps.tolist(), weights.tolist(), strict=True):
            alpha_bar = float(scheduler.alphas_cumprod[step])
            of_clean = (1 - alpha_bar) / alpha_bar if kind == "epsilon" else 1 - alpha_bar
            signal_to_noise = alpha_bar / (1 - alpha_bar)
            assert weight == pytest.approx(min(signal_to_noise, gamma) * of_clean, rel=1e-5)


def test_min_snr_of_a_schedule_with_zero_terminal_snr() -> None:
    for kind, expected in (("epsilon", 1.0), ("v_prediction", 0.0)):
        scheduler = make_scheduler(prediction_type=kind)
        scheduler.alphas_cumprod[-1] = 0.0
        assert min_snr_weights(scheduler, torch.tensor([999]), 5.0).item() == expected


@pytest.mark.parametrize("length", [1000, 10, 7])
def test_every_timestep_lies_in_one_band(length: int) -> None:
    bands = timestep_bands(torch.arange(length), length)
    assert torch.stack(list(bands.values())).sum(0).tolist() == [1] * length
    sizes = [int(inside.sum()) for inside in bands.values()]
    assert max(sizes) - min(sizes) <= 1
    for name, inside in bands.items():
        _, first, end = name.split("_")
        assert inside.nonzero().flatten().tolist() == list(range(int(first), int(end)))


def test_a_group_without_examples_has_no_mean() -> None:
    losses = torch.tensor([1.0, 2.0, 6.0])
    groups = {"a": torch.tensor([True, False, True]), "b": torch.tensor([False] * 3), "all": torch.tensor([True] * 3)}
    assert {name: mean.item() for name, mean in group_means(losses, groups).items()} == {"a": 3.5, "all": 3.0}
