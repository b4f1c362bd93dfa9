"""Targets and curves of the diffusion loss against their definitions."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from model.diffusion_loss import diffusion_target, group_means, timestep_bands


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


def test_a_prediction_type_that_is_not_known_is_named() -> None:
    scheduler = make_scheduler(prediction_type="sample")
    zeros = torch.zeros(1, 4, 2, 2)
    with pytest.raises(ValueError, match=r"^the scheduler's prediction type 'sample' is neither 'epsilon' nor"):
        diffusion_target(scheduler, zeros, zeros, torch.tensor([3]))


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
