"""Generations on their way, and one step of many of them: those at different steps share passes of the UNet.

Legend of shapes: as in `model.guidance.generation_branch`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from model.adapters.adapter import VisualAdapter
from model.backbone import Backbone, PromptEmbedding
from model.errors import GenerationError
from model.guidance.denoising import Generation, SubjectGuidance, predict_text_to_image
from model.guidance.generation_branch import DenoisingStep
from model.guidance.sampling import clean_latents, scheduler_step
from model.guidance.shared_guidance import SharedGuidance
from model.methods.registry import method_of


@dataclass(eq=False, kw_only=True)
class DenoisingRun:
    """A generation of B pictures, which take their steps together.

    Attributes:
        generation: Its inputs, and the latents after the steps so far.
        guidance: That of the generation; None without subjects.
        scheduler: Of this run alone, with its timesteps: schedulers keep state.
        generators: One for each picture, for schedulers that add noise.
        cut_off: The end of each picture's prompt that is not read; "" if all is.
        started: When it was started, of `time.perf_counter`.
        steps_taken: So far.
        rows_together: For each of these steps, the pictures that shared its passes.
    """

    generation: Generation
    guidance: SubjectGuidance | None
    scheduler: Any
    generators: Sequence[torch.Generator]
    cut_off: list[str]
    started: float
    steps_taken: int = 0
    rows_together: list[int] = field(default_factory=list)
    _last: tuple[Tensor, DenoisingStep] | None = None  # the last step and its prediction

    @property
    def is_finished(self) -> bool:
        """Whether all steps have been taken."""
        return self.steps_taken == len(self.scheduler.timesteps)

    def next_step(self) -> DenoisingStep:
        """The input of the next step."""
        latents, timestep = self.generation.latents, self.scheduler.timesteps[self.steps_taken]
        alpha_bar = self.scheduler.alphas_cumprod[timestep.long().cpu()].to(latents.device)
        scaled = self.scheduler.scale_model_input(latents, timestep)
        return DenoisingStep(
            self.steps_taken, timestep, scaled, alpha_bar.expand(len(scaled)), self.generation.text.hidden
        )

    def advance(self, step: DenoisingStep, prediction: Tensor, rows_together: int) -> None:
        """Take the step with its guided prediction (B, 4, h, w)."""
        latents = self.generation.latents
        self.generation.latents = scheduler_step(self.scheduler, prediction, step.timestep, latents, self.generators)
        self.steps_taken += 1
        self.rows_together.append(rows_together)
        self._last = prediction, step

    def clean_latents(self) -> Tensor:
        """The finished pictures' latents (B, 4, h, w) as the last step predicts them."""
        assert self._last is not None
        prediction, step = self._last
        return clean_latents(self.scheduler, prediction, step.latents, step.alpha_bar[0])

    def masks(self) -> Tensor | None:
        """The latest masks (B, S, G, G')."""
        return self.guidance.history[-1] if self.guidance is not None and self.guidance.history else None

    def check_finite(self) -> None:
        """Check the latents after the last step.

        Raises:
            GenerationError: They are not finite.
        """
        if not self.generation.latents.isfinite().all():
            raise GenerationError("the latents became NaN or infinite; try a wider dtype or a lower guidance_scale.")


def take_step(backbone: Backbone, adapter: VisualAdapter | None, runs: Sequence[DenoisingRun]) -> None:
    """Take the next step of each run. A picture does not depend on the others but for rounding.

    Runs share passes of the UNet if their latents have one shape and the same branches are computed; their prompts,
    subjects, masks, guidance scales, numbers of steps and steps taken may differ.

    Args:
        backbone: Of all runs.
        adapter: Attached to it.
        runs: Not finished.
    """
    groups: dict[Hashable, list[tuple[DenoisingRun, DenoisingStep]]] = defaultdict(list)
    for run in runs:
        step = run.next_step()
        groups[_pass_key(run, step)].append((run, step))
    for group in groups.values():
        _take_shared_step(backbone, adapter, group)


def _pass_key(run: DenoisingRun, step: DenoisingStep) -> Hashable:
    """Equal for runs that can share this step's passes."""
    if run.generation.auxiliary is not None:  # DCI's branches have a scheduler of their own
        return id(run)
    guidance = run.guidance
    subjects = guidance.pass_key(step.number) if guidance is not None and guidance.acts(step.number) else None
    return run.generation.latents.shape[1:], step.text.shape[1:], subjects


def _take_shared_step(
    backbone: Backbone, adapter: VisualAdapter | None, group: Sequence[tuple[DenoisingRun, DenoisingStep]]
) -> None:
    (first, step), *others = group
    generation = first.generation
    if others:
        generation, step = _together(group)
    guidance = generation.guidance
    if adapter is None or guidance is None or not guidance.acts(step.number):
        prediction = predict_text_to_image(backbone, generation, step)
    else:
        prediction = method_of(adapter).predict(backbone, generation, guidance, step)
    rows = [len(run.generation.latents) for run, _ in group]
    for (run, own), part in zip(group, prediction.split(rows), strict=True):
        run.advance(own, part, sum(rows))
        if others:
            run.generation.add_timings(generation.timings)


def _together(group: Sequence[tuple[DenoisingRun, DenoisingStep]]) -> tuple[Generation, DenoisingStep]:
    """One generation and step with the rows of all runs."""
    own = [run.generation for run, _ in group]
    steps = [step for _, step in group]
    acting = [run.guidance for run, step in group if run.guidance is not None and run.guidance.acts(step.number)]
    generation = Generation(
        text=PromptEmbedding.cat([one.text for one in own]),
        empty=PromptEmbedding.cat([one.empty for one in own]),
        guidance_scale=torch.cat([_column(one.guidance_scale, one.latents) for one in own]),
        image_guidance_scale=torch.cat([_column(one.image_guidance_scale, one.latents) for one in own]),
        guidance=SharedGuidance(acting, steps) if acting else None,
        auxiliary=None,
        latents=torch.cat([one.latents for one in own]),
    )
    return generation, DenoisingStep(
        steps[0].number,
        torch.cat([step.timestep.expand(len(step.latents)) for step in steps]),
        torch.cat([step.latents for step in steps]),
        torch.cat([step.alpha_bar for step in steps]),
        generation.text.hidden,
    )


def _column(scale: float | Tensor, latents: Tensor) -> Tensor:
    """A guidance scale for each row: (B, 1, 1, 1)."""
    return torch.as_tensor(scale, dtype=latents.dtype, device=latents.device).expand(len(latents), 1, 1, 1)
