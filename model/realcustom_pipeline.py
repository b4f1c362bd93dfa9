"""RealCustom++ inference: guidance branch, generation branch, early stop, guidance (Secs. III-D and III-E, Eqs. 12-17).

A step with subjects and masks runs the UNet twice: the guidance branch on B rows, up to the last layer whose attention
the masks need, then 2 B rows in one batch: the unconditional ones, and the generation branch with each subject inside
its mask. After `mask_steps` the last masks are kept and the second call is enough. Departure from the authors' code:
the unconditional rows carry no subject, as Eq. 15 prints; their code gives them the features of a black picture.
"""

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from model.adapter import RealCustomPlusAdapter
from model.backbone import Backbone, PromptEmbedding, load_backbone
from model.generation_branch import GenerationBranch
from model.guidance_branch import GuidanceLayers, GuidanceRecorder, run_guidance_branch
from model.image_encoder import ImageEncoders
from model.mask_guidance import Grid, grid_at
from model.mask_recipe import MaskRecipe
from model.pictures import to_pictures
from model.step_schedule import MaskSchedule, acting_steps
from model.subjects import GenerationError as GenerationError  # for its callers
from model.subjects import Subject, SubjectsOfPrompt, subjects_of
from model.visual_attention import VisualAttentionProcessor, VisualCondition

StepCallback = Callable[["RealCustomPlusPipeline", int, Tensor, dict[str, Any]], dict[str, Any]]


@dataclass
class RealCustomOutput(BaseOutput):
    """What a call of the pipeline returns."""

    images: list[Image.Image]  # B pictures
    masks: list[list[Tensor]]  # for each picture M_hat (S, G, G') of every step that made new ones; empty without masks
    timings: dict[str, float]  # seconds: encode, guidance, generation, decode, total


@dataclass
class _Masks:
    """Where the subjects may be: how their masks are made, when, and the ones made so far."""

    recipe: MaskRecipe
    schedule: MaskSchedule
    recorder: GuidanceRecorder | None = None  # of the last step, if the next one follows it
    made: list[Tensor] = field(default_factory=list)  # M_hat (B, S, G, G')


@dataclass
class _Subjects:
    """The visual side of one generation."""

    branch: GenerationBranch
    steps: range  # in which the subjects act
    masks: _Masks | None
    conditions: list[VisualCondition]  # of the next step


@dataclass
class _Run:
    """One generation: what stays the same over the steps, and what they change."""

    text: PromptEmbedding  # B rows
    both: PromptEmbedding  # unconditional rows, then `text`
    guidance_scale: float
    subjects: _Subjects | None
    latents: Tensor  # (B, 4, h, w)
    timings: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("encode", "guidance", "generation", "decode"), 0.0)
    )

    @property
    def grid(self) -> Grid:
        """Size of the latent."""
        return self.latents.shape[2], self.latents.shape[3]

    def clock(self, name: str, since: float) -> float:
        """Add the time since `since` to a timing; returns now."""
        now = time.perf_counter()
        self.timings[name] += now - since
        return now


class RealCustomPlusPipeline:
    """Paints prompts, with or without a subject picture that takes the place of a word.

    Args:
        backbone: the frozen base model. The adapter's processors are attached to its UNet; calls without a subject
            still compute the base model, and `adapter.detach(backbone.unet)` removes them.
        adapter: None paints from text alone.
        image_encoders: needed with an adapter.
        scheduler: any diffusers scheduler; by default DDIM, the paper's, with the backbone's noise schedule.

    Raises:
        AdapterError: the adapter was made for another base model.
        GenerationError: the adapter was made for other image encoders.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapter: RealCustomPlusAdapter | None = None,
        image_encoders: ImageEncoders | None = None,
        scheduler: Any = None,
    ) -> None:
        self.backbone = backbone
        self.adapter = adapter
        self.image_encoders = image_encoders
        self.scheduler = scheduler or DDIMScheduler.from_config(backbone.scheduler.config)
        if adapter is not None:
            given = image_encoders.width if image_encoders is not None else "none"
            if given != adapter.config["image_width"]:
                wanted = adapter.config["image_width"]
                raise GenerationError(f"the adapter reads image features of width {wanted}, the encoders give {given}.")
            adapter.eval().attach(backbone.unet)

    @classmethod
    def from_pretrained(
        cls,
        backbone: str | Path,
        adapter: str | Path | None = None,
        image_encoders: Sequence[str] = ("clip", "dino"),
        shallow_layers: Sequence[Sequence[int]] = ((0, 1, 2), (0, 1, 2)),
        reference_size: int = 64,
        tiles: int = 2,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "RealCustomPlusPipeline":
        """Load everything from folders or hub ids; the encoders' arguments are those of `ImageEncoders`."""
        base = load_backbone(backbone, dtype, device)
        if adapter is None:
            return cls(base)
        encoders = ImageEncoders.from_pretrained(
            image_encoders, backbone, shallow_layers, reference_size, tiles, dtype, device
        )
        return cls(base, RealCustomPlusAdapter.from_pretrained(adapter).to(device, dtype), encoders)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        subjects: Image.Image | Subject | Sequence[SubjectsOfPrompt] | None = None,
        words: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | None = None,
        steps: int = 25,
        guidance_scale: float = 5.0,
        use_mask: bool = True,
        mask_scope: float = 0.25,
        mask_steps: int = 12,
        mask_every: int = 1,
        mask_cross_downscales: Sequence[int] = (1, 2),
        mask_self_downscales: Sequence[int] = (1,),
        visual_scale: float = 1.0,
        visual_guidance_start: float = 0.0,
        visual_guidance_end: float = 1.0,
        height: int | None = None,
        width: int | None = None,
        seeds: int | Sequence[int] = 0,
        latents: Tensor | None = None,
        callback_on_step_end: StepCallback | None = None,
    ) -> RealCustomOutput:
        """Paint one picture a prompt.

        Args:
            prompt: B prompts, or one.
            subjects: for each prompt a picture, a `Subject` or a list of `Subject`s, or one picture or `Subject` for
                all; None paints from text alone.
            words: for each picture the word or phrase of the prompt that it stands for, or one for all. Needed for the
                mask. A `Subject` has its own.
            negative_prompt: for the unconditional rows.
            steps: denoising steps.
            guidance_scale: omega of Eq. 15.
            use_mask: False lets the subjects act on the whole picture.
            mask_scope: gamma_scope, the share of positions that a subject may take.
            mask_steps: T_stop; the guidance branch runs in the first so many steps.
            mask_every: 1 is exact. With k > 1 the guidance branch runs in every k-th of these steps and in the last one
                only, and the masks of the others come from the generation branch one step before. With 4 the masks'
                mean IoU with the exact ones is above 0.95 on the micro backbone.
            mask_cross_downscales: which cross-attention layers make the mask (see `model.guidance_branch`), as
                downscales of the largest attention grid.
            mask_self_downscales: which self-attention layers make it more exact, likewise; () none.
            visual_scale: strength of the visual attention.
            visual_guidance_start: share of the steps that have passed when the subjects begin to act.
            visual_guidance_end: likewise when they have ceased to.
            height: of the pictures, pixels; by default the backbone's resolution.
            width: likewise.
            seeds: one a picture, so that a picture does not depend on its batch; an integer s means s, s + 1, ...
            latents: initial noise (B, 4, h, w) of unit variance, instead of seeds.
            callback_on_step_end: called as `callback(pipeline, step, timestep, {"latents": ..., "masks": ...})`, masks
                being the latest (B, S, G, G') or None; "latents" in the returned dict replaces the latents.

        Raises:
            GenerationError: a request that does not fit together.
            WordNotInPromptError: lists the prompt's words.
        """
        start = time.perf_counter()
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        size = (height or self.backbone.resolution, width or self.backbone.resolution)
        self._check(prompts, size, steps)
        self.scheduler.set_timesteps(steps, device=self.backbone.device)
        visual = None
        if subjects is not None:
            named = subjects_of(prompts, subjects, words, mask_scope, visual_scale)
            acting = acting_steps(len(self.scheduler.timesteps), visual_guidance_start, visual_guidance_end)
            schedule = MaskSchedule.of(acting, mask_steps, mask_every) if use_mask else None
            downscales = mask_cross_downscales, mask_self_downscales
            visual = self._subjects(prompts, named, size, acting, schedule, downscales)
        text = self.backbone.encode_prompt(prompts, size)
        empty = self.backbone.encode_negative_prompt(negative_prompt, len(prompts), size)
        noise, generators = self._noise(len(prompts), size, seeds, latents)
        noise = noise * self.scheduler.init_noise_sigma
        run = _Run(text, PromptEmbedding.cat([empty, text]), guidance_scale, visual, noise)
        run.clock("encode", start)
        self._denoise(run, generators, callback_on_step_end)
        now = time.perf_counter()
        pictures = to_pictures(self.backbone.decode_latents(run.latents) / 2 + 0.5)
        run.timings["total"] = run.clock("decode", now) - start
        return RealCustomOutput(images=pictures, masks=_of_each_picture(visual, len(prompts)), timings=run.timings)

    def _check(self, prompts: list[str], size: Grid, steps: int) -> None:
        if not prompts or not all(prompt.strip() for prompt in prompts):
            raise GenerationError("the prompt is empty.")
        scale = self.backbone.latent_scale
        if size[0] <= 0 or size[1] <= 0 or size[0] % scale or size[1] % scale:
            raise GenerationError(
                f"a picture of {size[0]} x {size[1]} pixels: both sides must be multiples of {scale}."
            )
        if steps < 1:
            raise GenerationError(f"{steps} denoising steps: at least 1 is needed.")

    def _subjects(
        self,
        prompts: list[str],
        subjects: list[list[Subject]],
        size: Grid,
        acting: range,
        schedule: MaskSchedule | None,
        mask_downscales: tuple[Sequence[int], Sequence[int]],
    ) -> _Subjects:
        """Check and encode; `schedule` None stands for no masks."""
        if self.adapter is None or self.image_encoders is None:
            raise GenerationError("a subject was given, but this pipeline has no adapter.")
        if not self._processors():
            raise GenerationError("the adapter was detached from the base model; attach it or build a new pipeline.")
        masks = None
        if schedule is not None:
            layers = GuidanceLayers.of(self._processors(), *mask_downscales)
            recipe = MaskRecipe.of(self.backbone, layers, prompts, subjects, size)
            masks = _Masks(recipe, schedule if recipe.needs_maps else MaskSchedule())
        branch = GenerationBranch.of(self.adapter, self.image_encoders, subjects)
        visual = _Subjects(branch, acting, masks, branch.everywhere())
        if masks is not None and not masks.recipe.needs_maps:
            scale = self.backbone.latent_scale
            self._place(visual, masks.recipe.given, (size[0] // scale, size[1] // scale))
        return visual

    def _processors(self) -> list[VisualAttentionProcessor]:
        processors = self.backbone.unet.attn_processors.values()
        return [processor for processor in processors if isinstance(processor, VisualAttentionProcessor)]

    def _place(self, visual: _Subjects, masks: Tensor, latent: Grid) -> None:
        """From now on the subjects act inside these masks (B, N, S)."""
        assert visual.masks is not None
        layers = visual.masks.recipe.layers
        grid = grid_at(latent, layers.largest)
        visual.conditions = visual.branch.inside(masks, latent, grid, layers.visual_downscales)
        visual.masks.made.append(masks.transpose(1, 2).unflatten(2, grid))

    def _noise(
        self, batch: int, size: Grid, seeds: int | Sequence[int], latents: Tensor | None
    ) -> tuple[Tensor, list[torch.Generator]]:
        """Initial noise of unit variance, and the generators that schedulers with noise of their own go on with."""
        seeds = [seeds + row for row in range(batch)] if isinstance(seeds, int) else list(seeds)
        if len(seeds) != batch:
            raise GenerationError(f"{len(seeds)} seeds for {batch} prompts; give one each.")
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        scale = self.backbone.latent_scale
        shape = (self.backbone.unet.config.in_channels, size[0] // scale, size[1] // scale)
        if latents is None:
            latents = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        if latents.shape != (batch, *shape):
            raise GenerationError(f"latents of shape {tuple(latents.shape)}, wanted {(batch, *shape)}.")
        if not latents.isfinite().all():
            raise GenerationError("the initial latents contain NaN or infinite values.")
        return latents.to(self.backbone.device, self.backbone.dtype), generators

    def _denoise(self, run: _Run, generators: list[torch.Generator], callback: StepCallback | None) -> None:
        """All steps; changes `run`."""
        accepted = inspect.signature(self.scheduler.step).parameters
        options = {"generator": generators} if "generator" in accepted else {}
        for step, timestep in enumerate(self.scheduler.timesteps):
            scaled = self.scheduler.scale_model_input(run.latents, timestep)
            masks = run.subjects.masks if run.subjects is not None else None
            if masks is not None and step in masks.schedule.steps:
                self._find_masks(run, step, scaled, timestep)
            unconditional, conditional = self._generate(run, step, scaled, timestep)
            prediction = unconditional + run.guidance_scale * (conditional - unconditional)  # Eq. 15
            run.latents = self.scheduler.step(prediction, timestep, run.latents, **options).prev_sample
            if callback is not None:
                state = {"latents": run.latents, "masks": masks.made[-1] if masks is not None and masks.made else None}
                run.latents = callback(self, step, timestep, state).get("latents", run.latents)
        if not run.latents.isfinite().all():
            raise GenerationError("the latents became NaN or infinite; try a wider dtype or a lower guidance scale.")

    def _find_masks(self, run: _Run, step: int, latents: Tensor, timestep: Tensor) -> None:
        """New masks for the generation branch: from the guidance branch, or from itself one step before."""
        start = time.perf_counter()
        assert run.subjects is not None
        assert run.subjects.masks is not None
        masks = run.subjects.masks
        recorder = masks.recorder or GuidanceRecorder(masks.recipe.layers, masks.recipe.indicator, run.grid)
        if step in masks.schedule.guided:
            run_guidance_branch(self.backbone, latents, timestep, run.text, recorder)
        self._place(run.subjects, masks.recipe.masks(recorder.maps()), run.grid)
        masks.recorder = None
        run.clock("guidance", start)

    def _generate(self, run: _Run, step: int, latents: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """The unconditional rows and the generation branch, in one batch."""
        start = time.perf_counter()
        attention: dict[str, Any] = {}
        if run.subjects is not None and step in run.subjects.steps:
            attention["visual"] = run.subjects.conditions
            masks = run.subjects.masks
            if masks is not None and masks.schedule.follows(step + 1):
                layers, indicator = masks.recipe.layers, masks.recipe.indicator
                masks.recorder = GuidanceRecorder(layers, indicator, run.grid, ends_pass=False)
                attention["recorder"] = masks.recorder
        both = self.backbone.predict(torch.cat([latents, latents]), timestep, run.both, **attention)
        run.clock("generation", start)
        unconditional, conditional = both.chunk(2)
        return unconditional, conditional


def _of_each_picture(visual: _Subjects | None, pictures: int) -> list[list[Tensor]]:
    """For each picture the masks (S, G, G') of its own subjects, step by step."""
    if visual is None or visual.masks is None:
        return [[] for _ in range(pictures)]
    own = [len(counts) for counts in visual.masks.recipe.counts]
    return [[masks[row, : own[row]].cpu() for masks in visual.masks.made] for row in range(pictures)]
