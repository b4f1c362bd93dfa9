"""What the denoising steps of all methods have in common: guidance scales, the subjects' masks, passes of the UNet.

In one branch the UNet gets the text alone, and its attention makes the masks; in the other branch the references act
inside these masks. How a method combines the branches is in `model.methods`.

The unconditional rows have no subject, as in RealCustom++'s Eqs. 13 and 15; the code of its authors gives them the
features of a black picture, and so does the release (`model.methods.release`).
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, cat

from model.adapters.visual_attention import VisualCondition
from model.backbone import Backbone, PromptEmbedding
from model.dci.auxiliary_branch import AuxiliaryBranch
from model.guidance.generation_branch import DenoisingStep, GenerationBranch, SubjectMasks
from model.guidance.guidance_branch import GuidanceRecorder
from model.guidance.mask_recipe import MaskRecipe
from model.guidance.masks import Grid, grid_at
from model.guidance.schedule import MaskSchedule

Scale = float | Tensor  # a number, or (B, 1, 1, 1)


def guide(unconditional: Tensor, conditional: Tensor, scale: Scale) -> Tensor:
    """eps_0 + w (eps - eps_0): classifier-free guidance; with the generation branch it is RealCustom++ Eq. 15."""
    return unconditional + scale * (conditional - unconditional)


class Guidance(ABC):
    """What subjects add to the rows of a batch, in which steps, and inside which masks."""

    @abstractmethod
    def acts(self, step: int) -> bool:
        """Whether the subjects take part in a step."""

    @abstractmethod
    def is_guided(self, step: int) -> bool:
        """Whether the guidance branch finds the masks of a step."""

    @abstractmethod
    def recorder(self, *, ends_pass: bool) -> GuidanceRecorder:
        """A recorder for the guidance branch of a step."""

    @abstractmethod
    def find_masks(self, maps: Tensor) -> None:
        """Make new masks from the guidance branch's maps M (B, N, S)."""

    @abstractmethod
    def extrapolate_masks(self, step: int) -> None:
        """Make new masks without the guidance branch, in the steps in which the schedule says so."""

    @abstractmethod
    def conditions(self, step: DenoisingStep) -> list[VisualCondition]:
        """What the UNet's cross-attention takes as `visual` in the generation branch."""


@dataclass
class SubjectGuidance(Guidance):
    """The subjects of one generation."""

    branch: GenerationBranch
    steps: range  # in which the subjects take part
    schedule: MaskSchedule  # empty if no masks have to be found
    recipe: MaskRecipe | None  # None: the subjects act everywhere
    latent: Grid
    masks: SubjectMasks | None = None  # the latest
    history: list[Tensor] = field(default_factory=list)  # M_hat (B, S, G, G') of each step with new masks
    _maps: list[Tensor] = field(default_factory=list)  # M (B, N, S) of the last two guided steps

    @classmethod
    def of(
        cls, branch: GenerationBranch, steps: range, schedule: MaskSchedule, recipe: MaskRecipe | None, latent: Grid
    ) -> "SubjectGuidance":
        """The state before the first step. If the user gives all masks, no others are searched for."""
        if recipe is not None and recipe.needs_maps:
            return cls(branch, steps, schedule, recipe, latent)
        guidance = cls(branch, steps, MaskSchedule(), recipe, latent)
        if recipe is not None:
            guidance.set_masks(recipe.given)
        return guidance

    def set_masks(self, masks: Tensor) -> None:
        """Use the masks M_hat (B, N, S) from this step on."""
        assert self.recipe is not None
        layers = self.recipe.layers
        grid = grid_at(self.latent, layers.largest)
        self.masks = self.branch.subject_masks(masks, self.latent, grid, layers.visual_downscales)
        self.history.append(masks.transpose(1, 2).unflatten(2, grid))

    @property
    def subjects(self) -> int:
        """S."""
        return self.branch.strengths.shape[1]

    def acts(self, step: int) -> bool:
        """See `Guidance.acts`."""
        return step in self.steps

    def is_guided(self, step: int) -> bool:
        """See `Guidance.is_guided`."""
        return step in self.schedule.guided

    def pass_key(self, step: int) -> Hashable:
        """Equal for guidances whose steps can share passes of the UNet."""
        maps = None if self.recipe is None else (self.recipe.layers.names, self.recipe.normalization)
        return self.is_guided(step), maps, self.branch.keys

    def recorder(self, *, ends_pass: bool) -> GuidanceRecorder:
        """See `Guidance.recorder`."""
        assert self.recipe is not None
        recipe = self.recipe
        return GuidanceRecorder(
            recipe.layers, recipe.indicator, self.latent, ends_pass=ends_pass, normalization=recipe.normalization
        )

    def find_masks(self, maps: Tensor) -> None:
        """See `Guidance.find_masks`."""
        assert self.recipe is not None
        self._maps = [*self._maps[-1:], maps]
        self.set_masks(self.recipe.masks(maps))

    def extrapolate_masks(self, step: int) -> None:
        """See `Guidance.extrapolate_masks`.

        M continues from the last guided step in the direction in which it moved since the one before, at half the
        speed: it settles.
        """
        if self.schedule.extrapolates(step):
            assert self.recipe is not None
            before, last = self._maps
            maps = last + 0.5 * self.schedule.since_guided(step) * (last - before)
            self.set_masks(self.recipe.masks(maps.clamp(min=0)))

    def conditions(self, step: DenoisingStep) -> list[VisualCondition]:
        """See `Guidance.conditions`."""
        return self.branch.conditions(step, self.masks)

    def masks_of_pictures(self, pictures: int) -> list[list[Tensor]]:
        """For each picture the masks (S, G, G') of its own subjects, of each step with new masks."""
        if self.recipe is None:
            return [[] for _ in range(pictures)]
        subjects = [len(counts) for counts in self.recipe.counts]
        return [[masks[row, : subjects[row]].cpu() for masks in self.history] for row in range(pictures)]


@dataclass
class Generation:
    """One call of the pipeline: its inputs, its latents, and the time that it has taken."""

    text: PromptEmbedding  # B rows
    empty: PromptEmbedding  # B unconditional rows
    guidance_scale: Scale  # omega of RealCustom++ Eq. 15, omega_t of RealCustom Eq. 13
    image_guidance_scale: Scale  # omega_i of RealCustom Eq. 13
    guidance: Guidance | None  # None: no subjects
    auxiliary: AuxiliaryBranch | None  # None: without DCI
    latents: Tensor  # (B, 4, h, w)
    timings: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("encode", "guidance", "generation", "decode"), 0.0)
    )

    def clock(self, name: str, since: float) -> float:
        """Add the time since `since` to a timing; returns the current time."""
        now = time.perf_counter()
        self.timings[name] += now - since
        return now

    def add_timings(self, timings: Mapping[str, float]) -> None:
        """Add those of a batch in which this one took part."""
        for name, seconds in timings.items():
            self.timings[name] += seconds


def predict_text_to_image(backbone: Backbone, generation: Generation, step: DenoisingStep) -> Tensor:
    """The base model's guided prediction (B, 4, h, w), without subjects."""
    now = time.perf_counter()
    unconditional, text = predict_guided_rows(backbone, generation, step)
    generation.clock("generation", now)
    return guide(unconditional, text, generation.guidance_scale)


def predict_guided_rows(
    backbone: Backbone, generation: Generation, step: DenoisingStep, **attention: Any
) -> tuple[Tensor, Tensor]:
    """The UNet's outputs (B, 4, h, w) for the unconditional rows and the prompt's, in one batch.

    In DCI's first steps the batch also has the auxiliary branch, which takes its own step here. `visual` of `attention`
    applies to the prompt's rows alone, unless it has something for the unconditional ones.
    """
    auxiliary = generation.auxiliary
    if auxiliary is None or step.number not in auxiliary.steps:
        unconditional, text = predict_rows(backbone, step, generation.empty, generation.text, **attention)
        return unconditional, text
    integration = auxiliary.new_integration()
    unconditional, other, text = backbone.predict(
        cat([step.latents, auxiliary.scaled_latents(step.timestep), step.latents]),
        step.timestep,
        PromptEmbedding.cat([generation.empty, auxiliary.text, generation.text]),
        integration=integration,
        **attention,
    ).chunk(3)
    auxiliary.advance(guide(unconditional, other, generation.guidance_scale), step.timestep, integration)
    return unconditional, text


def predict_rows(
    backbone: Backbone, step: DenoisingStep, *prompts: PromptEmbedding, **attention: Any
) -> tuple[Tensor, ...]:
    """The UNet's outputs (B, 4, h, w) for B rows of each prompt, in one batch.

    `visual` and `recorder` of `attention` apply to the last prompt.
    """
    latents = cat([step.latents] * len(prompts))
    timestep = step.timestep.repeat(len(prompts)) if step.timestep.ndim else step.timestep
    return backbone.predict(latents, timestep, PromptEmbedding.cat(prompts), **attention).chunk(len(prompts))
