"""The auxiliary branch beside the concept branch in the first steps (Customized Generation Reimagined, Sec. 3.3).

Both branches have the same weights, and latents of their own that evolve side by side. A step with two branches is one
pass of the UNet over the rows [unconditional, auxiliary, concept]; the unconditional rows, of the concept branch's
latents, serve both branches, as in the authors' code. A generation costs at most 1 + T_a / T times a plain one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from model.adapters.visual_attention import VisualAttentionProcessor
from model.backbone import Backbone, PromptEmbedding
from model.dci.integration import MASK_SCALES, DualBranchIntegration
from model.dci.prompts import BranchPrompts
from model.dci.settings import DCISettings
from model.errors import GenerationError
from model.guidance.masks import Grid, grid_at
from model.guidance.sampling import scheduler_step
from model.seeding import generator_of


def auxiliary_steps(scheduler: Any, settings: DCISettings) -> range:
    """The denoising steps with two branches: those with t / T > 1 - T_a, and no more than a share T_a of all steps.

    Args:
        scheduler: with its timesteps.
        settings: with T_a.

    Raises:
        GenerationError: there is no such step, and T_a is not 0.
    """
    timesteps = scheduler.timesteps
    first = scheduler.config.num_train_timesteps * (1 - settings.auxiliary_share) + 1e-6
    early = sum(timestep > first for timestep in timesteps.tolist())
    steps = range(min(early, settings.most_auxiliary_steps(len(timesteps))))
    if settings.auxiliary_share and not steps:
        raise GenerationError(
            f"auxiliary_share {settings.auxiliary_share} leaves the auxiliary branch none of {len(timesteps)} steps; "
            "raise it, or take more steps."
        )
    return steps


def integration_layers(processors: Iterable[VisualAttentionProcessor], *, deep: bool = True) -> dict[str, int]:
    """All cross-attention layers of a UNet, or only the last one to run, with the downscales of their grids."""
    layers = {one.layer: one.downscale for one in processors if one.layer.endswith(".attn2")}
    if deep:
        return layers
    order = ("down_blocks", "mid_block", "up_blocks")
    last = max(enumerate(layers), key=lambda item: (order.index(item[1].partition(".")[0]), item[0]))[1]
    return {last: layers[last]}


@dataclass
class AuxiliaryBranch:
    """The auxiliary branch of one generation."""

    text: PromptEmbedding  # of P_a, B rows
    steps: range  # in which there are two branches
    latents: Tensor  # (B, 4, h, w)
    scheduler: Any  # of its own: schedulers keep the history of what they step
    generators: Sequence[torch.Generator]
    integration: DualBranchIntegration
    history: list[dict[int, Tensor]] = field(default_factory=list)  # of each step: downscale -> M_hat_a (B, G, G')

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        processors: Sequence[VisualAttentionProcessor],
        scheduler: Any,
        prompts: BranchPrompts,
        settings: DCISettings,
        size: Grid,
        noise: Tensor,
        generators: Sequence[torch.Generator],
    ) -> AuxiliaryBranch:
        """The branch before the first step.

        Args:
            backbone: with the learned concept.
            processors: of the backbone's UNet.
            scheduler: of the concept branch, with its timesteps.
            prompts: of both branches.
            settings: of the request.
            size: of the pictures, pixels.
            noise: of the concept branch, (B, 4, h, w) with unit variance.
            generators: of the concept branch, after that noise.

        Raises:
            GenerationError: no step has two branches, or the text encoder cuts a phrase off.
        """
        steps = auxiliary_steps(scheduler, settings)
        concept, auxiliary = prompts.tokens(backbone)
        if settings.auxiliary_noise == "own":
            generators = [generator_of(one.initial_seed(), "auxiliary") for one in generators]
            drawn = [torch.randn(noise.shape[1:], generator=generator) for generator in generators]
            noise = torch.stack(drawn).to(noise)
        else:
            generators = [generator.clone_state() for generator in generators]
        return cls(
            text=backbone.encode_prompt(prompts.auxiliary, size),
            steps=steps,
            latents=noise * scheduler.init_noise_sigma,
            scheduler=copy.deepcopy(scheduler),
            generators=generators,
            integration=DualBranchIntegration(
                concept=concept,
                auxiliary=auxiliary,
                layers=integration_layers(processors, deep=settings.ablation != "no_deep_aggregation"),
                strength=settings.injection_strength,
                scales=None if settings.ablation == "no_mask" else MASK_SCALES[settings.scales],
            ),
        )

    def scaled_latents(self, timestep: Tensor) -> Tensor:
        """The UNet's input (B, 4, h, w)."""
        return self.scheduler.scale_model_input(self.latents, timestep)

    def new_integration(self) -> DualBranchIntegration:
        """The integration of one pass."""
        return replace(self.integration, masks={})

    def advance(self, prediction: Tensor, timestep: Tensor, integration: DualBranchIntegration) -> None:
        """Step the latents by the branch's guided prediction, and keep the masks of the pass."""
        height, width = self.latents.shape[2:]
        self.latents = scheduler_step(self.scheduler, prediction, timestep, self.latents, self.generators)
        self.history.append(
            {
                downscale: torch.stack(masks).mean(0).unflatten(1, grid_at((height, width), downscale))
                for downscale, masks in integration.masks.items()
            }
        )

    def masks_of_pictures(self, pictures: int) -> list[dict[int, Tensor]]:
        """For each picture M_hat_a at each scale: downscale -> (steps, G, G'), the mean over heads and layers."""
        downscales = self.history[0] if self.history else {}
        return [
            {downscale: torch.stack([step[downscale][row] for step in self.history]).cpu() for downscale in downscales}
            for row in range(pictures)
        ]
