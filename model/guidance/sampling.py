"""The check of a request, its initial noise, and one step of a diffusers scheduler."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from model.errors import GenerationError
from model.guidance.masks import Grid


def check_request(prompts: Sequence[str], size: Grid, steps: int, latent_scale: int) -> None:
    """Refuse what cannot be painted with any model.

    Args:
        prompts: Of the pictures.
        size: Height and width of the pictures, pixels.
        steps: Denoising steps.
        latent_scale: Width of a latent position, pixels.

    Raises:
        GenerationError: A prompt is empty, a side does not divide, or there are no steps.
    """
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise GenerationError("the prompt is empty.")
    if min(size) <= 0 or any(side % latent_scale for side in size):
        raise GenerationError(
            f"a picture of {size[0]} x {size[1]} pixels: both sides must be multiples of {latent_scale}."
        )
    if steps < 1:
        raise GenerationError(f"steps is {steps}: at least 1 denoising step is needed.")


def initial_noise(
    batch: int, shape: tuple[int, int, int], seeds: int | Sequence[int], latents: Tensor | None
) -> tuple[Tensor, list[torch.Generator]]:
    """Noise (B, 4, h, w) of unit variance, and the generators for schedulers that add noise.

    Args:
        batch: B.
        shape: Of the latents of a picture.
        seeds: One for each picture; an integer s means s, s + 1, ...
        latents: The noise, if the user gives it.

    Raises:
        GenerationError: The numbers do not fit together, or the user's noise is not finite.
    """
    seeds = [seeds + row for row in range(batch)] if isinstance(seeds, int) else list(seeds)
    if len(seeds) != batch:
        raise GenerationError(f"{len(seeds)} seeds for {batch} prompts; give one for each.")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    if latents is None:
        latents = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    if latents.shape != (batch, *shape):
        raise GenerationError(f"latents have shape {tuple(latents.shape)}; the request needs {(batch, *shape)}.")
    if not latents.isfinite().all():
        raise GenerationError("the initial latents contain NaN or infinite values.")
    return latents, generators


def scheduler_of_steps(scheduler: Any, steps: int, device: torch.device) -> Any:
    """A copy of a scheduler for one run, with the timesteps of its steps.

    Raises:
        GenerationError: It has fewer timesteps than steps.
    """
    own = copy.deepcopy(scheduler)
    trained = len(own.alphas_cumprod)
    own.set_timesteps(min(steps, trained), device=device)
    if steps > trained or own.timesteps.max() >= trained:  # diffusers adds `steps_offset` to the last one
        raise GenerationError(f"{steps} steps are too many for a scheduler of {trained} timesteps; take fewer.")
    return own


def clean_latents(scheduler: Any, prediction: Tensor, scaled: Tensor, alpha_bar: Tensor) -> Tensor:
    """The latents (B, 4, h, w) without noise, as a step's prediction gives them.

    Args:
        scheduler: Its `prediction_type` says what the prediction is.
        prediction: (B, 4, h, w).
        scaled: The UNet's input z_t (B, 4, h, w), sqrt(alpha_bar) z_0 + sqrt(1 - alpha_bar) eps.
        alpha_bar: () of the step.
    """
    signal, noise = alpha_bar.sqrt().to(scaled.dtype), (1 - alpha_bar).sqrt().to(scaled.dtype)
    kind = scheduler.config.prediction_type
    if kind == "sample":
        return prediction
    if kind == "v_prediction":
        return signal * scaled - noise * prediction
    return (scaled - noise * prediction) / signal


def scheduler_step(
    scheduler: Any, prediction: Tensor, timestep: Tensor, latents: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    """The latents (B, 4, h, w) of the next step; `generators`, one a row, serve schedulers that add noise."""
    accepted = inspect.signature(scheduler.step).parameters
    options = {"generator": list(generators)} if "generator" in accepted else {}
    return scheduler.step(prediction, timestep, latents, **options).prev_sample
