"""The samplers that settings can name, as diffusers' schedulers on a backbone's noise schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverSinglestepScheduler

from model.guidance.settings import Sampler

#: The noise schedule in the configuration of any of diffusers' schedulers.
_NOISE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")


class SinglestepDPMSolver(DPMSolverSinglestepScheduler):
    """DPM-Solver++ (2S) as in the code of RealCustom++'s authors: orders 1, 1, 2, 1, 2, ..., from the last timestep.

    Diffusers' scheduler has the orders 1, 2, 1, 2, ..., 1 and no trailing timesteps. The last step gives the clean
    latents x_0 of its prediction, which the authors decode.
    """

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Trailing timesteps: 999, 959, ..., 39 for 25 steps."""
        trained = self.config.num_train_timesteps
        timesteps = np.round(trained - 1 - np.arange(num_inference_steps) * trained / num_inference_steps).astype(int)
        super().set_timesteps(timesteps=timesteps.tolist(), device=device)

    def get_order_list(self, num_inference_steps: int) -> list[int]:
        """1, then 1 and 2 in turn, but 1 in the last step: an update of order 1 to no noise is x_0."""
        orders = [1, *(number % 2 + 1 for number in range(num_inference_steps - 1))]
        return [*orders[:-1], 1]


def new_scheduler(sampler: Sampler, config: Mapping[str, Any], *, trailing: bool = False) -> Any:
    """A scheduler without timesteps.

    Args:
        sampler: See `Sampler`.
        config: Of the backbone's scheduler.
        trailing: DDIM's timesteps start from the last one, and its last step gives x_0, as in the authors' code; else
            they are those of `config`. Those of DPM-Solver++ are always trailing.
    """
    noise = {name: config[name] for name in _NOISE if name in config}
    if sampler == "dpm":
        return SinglestepDPMSolver(
            algorithm_type="dpmsolver++",
            solver_type="midpoint",
            solver_order=2,
            final_sigmas_type="zero",
            lower_order_final=True,  # else diffusers warns
            **noise,
        )
    if trailing:
        return DDIMScheduler(timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True, **noise)
    return DDIMScheduler.from_config(config)
