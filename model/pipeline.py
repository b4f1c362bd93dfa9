"""Inference of RealCustom (Sec. 3.3) and RealCustom++ (Secs. III-D and III-E): a request, from prompt to picture.

Which of them it is depends on the adapter; `model.guidance.denoising` has their steps. Masks are found until
`mask_steps`; then the last ones are kept.
"""

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from model.adapters.adapter import VisualAdapter
from model.adapters.image_encoder import ImageEncoders
from model.adapters.loading import load_adapter
from model.adapters.visual_attention import VisualAttentionProcessor
from model.backbone import Backbone, load_backbone
from model.guidance.denoising import ActingSubjects, Run, predict
from model.guidance.generation_branch import DenoisingStep, generation_branch
from model.guidance.guidance_branch import GuidanceLayers
from model.guidance.mask_recipe import MaskRecipe
from model.guidance.masks import Grid
from model.guidance.schedule import MaskSchedule, acting_steps
from model.guidance.subjects import GenerationError as GenerationError  # for its callers
from model.guidance.subjects import Subject, SubjectsOfPrompt, subjects_of
from model.offload import accelerator, offload
from model.pictures.tensors import to_pictures

StepCallback = Callable[["RealCustomPipeline", int, Tensor, dict[str, Any]], dict[str, Any]]


@dataclass
class RealCustomOutput(BaseOutput):
    """What a call of the pipeline returns."""

    images: list[Image.Image]  # B pictures
    masks: list[list[Tensor]]  # for each picture M_hat (S, G, G') of every step that made new ones; empty without masks
    timings: dict[str, float]  # seconds: encode, guidance, generation, decode, total


class RealCustomPipeline:
    """Paints prompts, with or without a subject picture that takes the place of a word.

    Args:
        backbone: the frozen base model. The adapter's processors are attached to its UNet; calls without a subject
            still compute the base model, and `adapter.detach(backbone.unet)` removes them.
        adapter: of RealCustom or RealCustom++; None paints from text alone.
        image_encoders: needed with an adapter.
        scheduler: any diffusers scheduler; by default DDIM, the paper's, with the backbone's noise schedule.

    Raises:
        AdapterError: the adapter was made for another base model.
        GenerationError: the adapter was made for other image encoders.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapter: VisualAdapter | None = None,
        image_encoders: ImageEncoders | None = None,
        scheduler: Any = None,
    ) -> None:
        self.backbone = backbone
        self.adapter = adapter
        self.image_encoders = image_encoders
        self.scheduler = scheduler or DDIMScheduler.from_config(backbone.scheduler.config)
        self._offloaded: list[Any] = []  # accelerate's hooks
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
    ) -> "RealCustomPipeline":
        """Load everything from folders or hub ids; the encoders' arguments are those of `ImageEncoders`.

        The adapter's `config.json` says of which method it is.
        """
        base = load_backbone(backbone, dtype, device)
        if adapter is None:
            return cls(base)
        encoders = ImageEncoders.from_pretrained(
            image_encoders, backbone, shallow_layers, reference_size, tiles, dtype, device
        )
        return cls(base, load_adapter(adapter, torch_dtype=dtype).to(device), encoders)

    def enable_model_cpu_offload(self, device: torch.device | str | None = None) -> None:
        """Let every model wait on the CPU until it is called, one at a time on the accelerator: less memory there.

        As in diffusers' pipelines, with accelerate's hooks. The adapter stays on the accelerator: RealCustom calls it
        between two passes of the UNet.

        Args:
            device: with its index; by default the accelerator in use.

        Raises:
            OffloadError: there is no accelerator.
        """
        target = accelerator() if device is None else torch.device(device)
        base = self.backbone
        encoders = [] if self.image_encoders is None else [self.image_encoders]
        self._offloaded = offload([*encoders, *base.text_encoders, base.unet, base.vae], target)
        if self.adapter is not None:
            self.adapter.to(target)

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
        image_guidance_scale: float = 8.0,
        gamma_num: float = 0.8,
        use_mask: bool = True,
        mask_scope: float = 0.25,
        mask_steps: int | None = 12,
        mask_every: int = 1,
        mask_cross_downscales: Sequence[int] = (1, 2),
        mask_self_downscales: Sequence[int] = (1,),
        mask_binary: bool = False,
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
            guidance_scale: omega of RealCustom++'s Eq. 15, omega_t of RealCustom's Eq. 13.
            image_guidance_scale: RealCustom's omega_i (Eq. 13).
            gamma_num: the share of the image tokens that RealCustom's scoring module keeps.
            use_mask: False lets the subjects act on the whole picture.
            mask_scope: gamma_scope, the share of positions that a subject may take.
            mask_steps: T_stop; masks are found in the first so many steps; None: in all, as in RealCustom.
            mask_every: 1 is exact. With k > 1 the guidance branch runs in every k-th of these steps only; between them
                its maps are extrapolated (`model.guidance.denoising`). 3 is a good choice
                (`tests.benchmarks.fast_masks`).
            mask_cross_downscales: which cross-attention layers make the mask (see `model.guidance.guidance_branch`), as
                downscales of the largest attention grid.
            mask_self_downscales: which self-attention layers make it more exact, likewise; () none.
            mask_binary: 1 wherever a subject may be, instead of weights by Eq. 13 (Eq. 11 of RealCustom); an ablation.
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
        acting = None
        if subjects is not None:
            adapter, encoders = self._attached()
            named = subjects_of(prompts, subjects, words, mask_scope, visual_scale)
            when = acting_steps(len(self.scheduler.timesteps), visual_guidance_start, visual_guidance_end)
            schedule, recipe = MaskSchedule(), None
            if use_mask:
                schedule = MaskSchedule.of(when, mask_steps, mask_every)
                layers = GuidanceLayers.of(self._processors(), mask_cross_downscales, mask_self_downscales)
                recipe = MaskRecipe.of(self.backbone, layers, prompts, named, size, mask_binary)
            branch = generation_branch(adapter, encoders, named, gamma_num)
            latent = (size[0] // self.backbone.latent_scale, size[1] // self.backbone.latent_scale)
            acting = ActingSubjects.of(branch, when, schedule, recipe, latent)
        text = self.backbone.encode_prompt(prompts, size)
        empty = self.backbone.encode_negative_prompt(negative_prompt, len(prompts), size)
        noise, generators = self._noise(len(prompts), size, seeds, latents)
        noise = noise * self.scheduler.init_noise_sigma
        run = Run(text, empty, guidance_scale, image_guidance_scale, acting, noise)
        run.clock("encode", start)
        self._denoise(run, generators, callback_on_step_end)
        now = time.perf_counter()
        pictures = to_pictures(self.backbone.decode_latents(run.latents) / 2 + 0.5)
        for hook in self._offloaded:
            hook.offload()
        run.timings["total"] = run.clock("decode", now) - start
        return RealCustomOutput(images=pictures, masks=_of_each_picture(acting, len(prompts)), timings=run.timings)

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

    def _attached(self) -> tuple[VisualAdapter, ImageEncoders]:
        if self.adapter is None or self.image_encoders is None:
            raise GenerationError("a subject was given, but this pipeline has no adapter.")
        if not self._processors():
            raise GenerationError("the adapter was detached from the base model; attach it or build a new pipeline.")
        return self.adapter, self.image_encoders

    def _processors(self) -> list[VisualAttentionProcessor]:
        processors = self.backbone.unet.attn_processors.values()
        return [processor for processor in processors if isinstance(processor, VisualAttentionProcessor)]

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

    def _denoise(self, run: Run, generators: list[torch.Generator], callback: StepCallback | None) -> None:
        """All steps; changes `run`."""
        accepted = inspect.signature(self.scheduler.step).parameters
        options = {"generator": generators} if "generator" in accepted else {}
        timesteps = self.scheduler.timesteps
        alpha_bars = self.scheduler.alphas_cumprod[timesteps.long().cpu()].to(timesteps.device)
        for number, (timestep, alpha_bar) in enumerate(zip(timesteps, alpha_bars, strict=True)):
            scaled = self.scheduler.scale_model_input(run.latents, timestep)
            of_rows = alpha_bar.expand(len(scaled))
            prediction = predict(self.backbone, run, DenoisingStep(number, timestep, scaled, of_rows, run.text.hidden))
            run.latents = self.scheduler.step(prediction, timestep, run.latents, **options).prev_sample
            if callback is not None:
                masks = run.subjects.made[-1] if run.subjects is not None and run.subjects.made else None
                state = {"latents": run.latents, "masks": masks}
                run.latents = callback(self, number, timestep, state).get("latents", run.latents)
        if not run.latents.isfinite().all():
            raise GenerationError("the latents became NaN or infinite; try a wider dtype or a lower guidance scale.")


def _of_each_picture(acting: ActingSubjects | None, pictures: int) -> list[list[Tensor]]:
    """For each picture the masks (S, G, G') of its own subjects, step by step."""
    if acting is None or acting.recipe is None:
        return [[] for _ in range(pictures)]
    own = [len(counts) for counts in acting.recipe.counts]
    return [[masks[row, : own[row]].cpu() for masks in acting.made] for row in range(pictures)]
