"""The samplers of the settings, against plain statements of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from torch import Tensor

from model.errors import GenerationError
from model.guidance.samplers import SinglestepDPMSolver, new_scheduler
from model.guidance.sampling import scheduler_of_steps
from tests.support import release_statement

NOISE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
#: Of a fine-tuned SDXL: nothing but its noise schedule counts.
CONFIG = EulerDiscreteScheduler(**NOISE, use_karras_sigmas=True, timestep_spacing="leading", steps_offset=1).config


def predict(latents: Tensor, timestep: int) -> Tensor:
    """Some smooth function of both."""
    return torch.sin(latents * 0.7) + latents.roll(1, 1) * timestep / 3000


def sampled(scheduler: Any, latents: Tensor, steps: int) -> Tensor:
    own = scheduler_of_steps(scheduler, steps, torch.device("cpu"))
    for timestep in own.timesteps:
        latents = own.step(predict(latents, int(timestep)), timestep, latents).prev_sample
    return latents


CASES = [
    *(("dpm", steps) for steps in (1, 2, 3, 4, 5, 7, 10, 16, 20, 25, 30, 50, 100)),
    *(("ddim", steps) for steps in (1, 2, 4, 5, 10, 20, 25, 50, 100)),  # diffusers rounds where 1000 is no multiple
]


@pytest.mark.parametrize(("sampler", "steps"), CASES)
def test_samplers_are_those_of_the_statement(sampler: Any, steps: int) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    got = sampled(new_scheduler(sampler, CONFIG, trailing=True), latents, steps)
    statement = {"dpm": release_statement.dpm, "ddim": release_statement.ddim}[sampler]
    torch.testing.assert_close(got, statement(predict, latents, steps), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 4, 25])
def test_diffusers_finds_nothing_to_change(steps: int) -> None:
    """It would say so to the user."""
    scheduler = new_scheduler("dpm", CONFIG)
    assert scheduler_of_steps(scheduler, steps, torch.device("cpu")).config == scheduler.config


def test_the_orders_are_the_authors() -> None:
    for steps, orders in {1: [1], 2: [1, 1], 3: [1, 1, 1], 4: [1, 1, 2, 1], 6: [1, 1, 2, 1, 2, 1]}.items():
        assert SinglestepDPMSolver().get_order_list(steps) == orders  # the last one gives x_0 at any order


def test_without_trailing_ddim_is_the_backbones() -> None:
    own = scheduler_of_steps(new_scheduler("ddim", CONFIG), 25, torch.device("cpu"))
    expected = DDIMScheduler.from_config(CONFIG)
    expected.set_timesteps(25)
    assert own.timesteps.tolist() == expected.timesteps.tolist()
    assert own.timesteps[0] == 961


@pytest.mark.parametrize("sampler", ["dpm", "ddim"])
def test_more_steps_than_timesteps_are_refused(sampler: Any) -> None:
    scheduler = new_scheduler(sampler, {**CONFIG, "num_train_timesteps": 30}, trailing=True)
    with pytest.raises(GenerationError, match="31 steps are too many for a scheduler of 30 timesteps"):
        scheduler_of_steps(scheduler, 31, torch.device("cpu"))
    assert len(scheduler_of_steps(scheduler, 30, torch.device("cpu")).timesteps) == 30
