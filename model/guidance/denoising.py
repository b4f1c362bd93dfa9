"""A denoising step of RealCustom and of RealCustom++: both run two branches, and combine them by rules of their own.

In one branch the UNet sees the text alone, and its attention makes the masks; in the other one the references act
inside them.

RealCustom++ (Secs. III-D and III-E, Eqs. 12-17) does not use what its guidance branch predicts: that pass, of B rows,
ends at the last layer whose attention counts. The unconditional rows and the generation branch then share a batch.

RealCustom (Sec. 3.3, Eqs. 11-13) uses what its T2I branch predicts: its attention is recorded on the way, in one batch
with the unconditional rows. The TI2I branch follows, of B rows; in a step that keeps the last masks all three share a
batch.

Departure from the code of RealCustom++'s authors: the unconditional rows carry no subject, as Eqs. 13 and 15 print;
their code gives them the features of a black picture.
"""

import time
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, cat

from model.adapters.visual_attention import VisualCondition
from model.backbone import Backbone, PromptEmbedding
from model.guidance.generation_branch import DenoisingStep, GenerationBranch, PlacedMasks, RealCustomBranch
from model.guidance.guidance_branch import GuidanceRecorder, run_guidance_branch
from model.guidance.mask_recipe import MaskRecipe
from model.guidance.masks import Grid, grid_at
from model.guidance.schedule import MaskSchedule


def guide(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """eps_0 + w (eps - eps_0): classifier-free guidance; of the generation branch it is RealCustom++ Eq. 15."""
    return unconditional + scale * (conditional - unconditional)


def guide_by_text_and_image(
    unconditional: Tensor, text: Tensor, text_and_image: Tensor, text_scale: float, image_scale: float
) -> Tensor:
    """eps_0 + w_t (eps_T - eps_0) + w_i (eps_TI - eps_T) (RealCustom Eq. 13); Eq. 15 has w_t = w_i."""
    return guide(unconditional, text, text_scale) + image_scale * (text_and_image - text)


@dataclass
class ActingSubjects:
    """The subjects of one generation: how they look, when they act, where."""

    branch: GenerationBranch
    steps: range  # in which they act
    schedule: MaskSchedule  # of the masks; empty where none have to be found
    recipe: MaskRecipe | None  # None: they act everywhere
    latent: Grid
    placed: PlacedMasks | None = None  # the latest masks
    made: list[Tensor] = field(default_factory=list)  # M_hat (B, S, G, G') of every step that made new ones
    _guided: list[Tensor] = field(default_factory=list)  # M (B, N, S) of the last two guided steps

    @classmethod
    def of(
        cls, branch: GenerationBranch, steps: range, schedule: MaskSchedule, recipe: MaskRecipe | None, latent: Grid
    ) -> "ActingSubjects":
        """Before the first step; masks that are all drawn by the user are in their places."""
        if recipe is not None and recipe.needs_maps:
            return cls(branch, steps, schedule, recipe, latent)
        subjects = cls(branch, steps, MaskSchedule(), recipe, latent)
        if recipe is not None:
            subjects.place(recipe.given)
        return subjects

    def place(self, masks: Tensor) -> None:
        """From now on the subjects act inside these masks (B, N, S)."""
        assert self.recipe is not None
        layers = self.recipe.layers
        grid = grid_at(self.latent, layers.largest)
        self.placed = self.branch.place(masks, self.latent, grid, layers.visual_downscales)
        self.made.append(masks.transpose(1, 2).unflatten(2, grid))

    def recorder(self, *, ends_pass: bool) -> GuidanceRecorder:
        """For a pass that is to make masks."""
        assert self.recipe is not None
        return GuidanceRecorder(self.recipe.layers, self.recipe.indicator, self.latent, ends_pass=ends_pass)

    def find(self, recorder: GuidanceRecorder) -> None:
        """New masks, from what the guidance branch has recorded."""
        assert self.recipe is not None
        self._guided = [*self._guided[-1:], recorder.maps()]
        self.place(self.recipe.masks(self._guided[-1]))

    def extrapolate(self, step: int) -> None:
        """New masks without the guidance branch, where the schedule wants them.

        M goes on from the last guided step the way it came there from the one before, at half the speed: it settles.
        """
        if self.schedule.extrapolates(step):
            assert self.recipe is not None
            before, last = self._guided
            maps = last + 0.5 * self.schedule.since_guided(step) * (last - before)
            self.place(self.recipe.masks(maps.clamp(min=0)))

    def conditions(self, step: DenoisingStep) -> list[VisualCondition]:
        """What the UNet's cross-attention takes as `visual` in the generation branch."""
        return self.branch.conditions(step, self.placed)


@dataclass
class Run:
    """One generation: what stays the same over the steps, and what they change."""

    text: PromptEmbedding  # B rows
    empty: PromptEmbedding  # B unconditional rows
    guidance_scale: float  # omega of Eq. 15, omega_t of Eq. 13
    image_guidance_scale: float  # omega_i of Eq. 13
    subjects: ActingSubjects | None
    latents: Tensor  # (B, 4, h, w)
    timings: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("encode", "guidance", "generation", "decode"), 0.0)
    )

    def clock(self, name: str, since: float) -> float:
        """Add the time since `since` to a timing; returns now."""
        now = time.perf_counter()
        self.timings[name] += now - since
        return now


def predict(backbone: Backbone, run: Run, step: DenoisingStep) -> Tensor:
    """The guided prediction (B, 4, h, w) of a step."""
    if run.subjects is None or step.number not in run.subjects.steps:
        return _text_to_image(backbone, run, step)
    if isinstance(run.subjects.branch, RealCustomBranch):
        return _realcustom(backbone, run, run.subjects, step)
    return _realcustom_plus(backbone, run, run.subjects, step)


def _text_to_image(backbone: Backbone, run: Run, step: DenoisingStep) -> Tensor:
    now = time.perf_counter()
    unconditional, text = _pass(backbone, step, run.empty, run.text)
    run.clock("generation", now)
    return guide(unconditional, text, run.guidance_scale)


def _realcustom_plus(backbone: Backbone, run: Run, subjects: ActingSubjects, step: DenoisingStep) -> Tensor:
    """RealCustom++ Eq. 15."""
    now = time.perf_counter()
    subjects.extrapolate(step.number)
    if step.number in subjects.schedule.guided:
        recorder = subjects.recorder(ends_pass=True)
        run_guidance_branch(backbone, step.latents, step.timestep, run.text, recorder)
        subjects.find(recorder)
    now = run.clock("guidance", now)
    unconditional, generation = _pass(backbone, step, run.empty, run.text, visual=subjects.conditions(step))
    run.clock("generation", now)
    return guide(unconditional, generation, run.guidance_scale)


def _realcustom(backbone: Backbone, run: Run, subjects: ActingSubjects, step: DenoisingStep) -> Tensor:
    """RealCustom Eq. 13."""
    now = time.perf_counter()
    subjects.extrapolate(step.number)
    if step.number in subjects.schedule.guided:
        recorder = subjects.recorder(ends_pass=False)
        unconditional, text = _pass(backbone, step, run.empty, run.text, recorder=recorder)
        subjects.find(recorder)
        now = run.clock("guidance", now)
        (text_and_image,) = _pass(backbone, step, run.text, visual=subjects.conditions(step))
    else:
        rows = run.empty, run.text, run.text
        unconditional, text, text_and_image = _pass(backbone, step, *rows, visual=subjects.conditions(step))
    run.clock("generation", now)
    return guide_by_text_and_image(unconditional, text, text_and_image, run.guidance_scale, run.image_guidance_scale)


def _pass(backbone: Backbone, step: DenoisingStep, *prompts: PromptEmbedding, **attention: Any) -> tuple[Tensor, ...]:
    """The UNet's outputs (B, 4, h, w) for several prompts in one batch; a condition or a recorder is for the last."""
    latents = cat([step.latents] * len(prompts))
    return backbone.predict(latents, step.timestep, PromptEmbedding.cat(prompts), **attention).chunk(len(prompts))
