"""RealCustom++ inference: guidance branch, generation branch, early stop, guidance (Sec. III-D, Eqs. 12-15).

Each step with a subject and a mask runs the UNet on 3 B rows: unconditional and guidance rows together without a
subject, then the generation rows with the subject inside the mask those gave. After `mask_steps` the last mask is
kept and 2 B rows are enough. Departure from the authors' code: the unconditional rows carry no subject, as Eq. 15
prints; their code gives them the features of a black picture.
"""

import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from model.adapter import RealCustomPlusAdapter
from model.backbone import Backbone, PromptEmbedding, load_backbone
from model.image_encoder import ImageEncoders
from model.mask_guidance import Grid, grid_at, guidance_mask, layer_masks, token_indicator, top_count
from model.pictures import to_pictures
from model.visual_attention import AttentionRecorder, VisualAttentionProcessor, VisualCondition

StepCallback = Callable[["RealCustomPlusPipeline", int, Tensor, dict[str, Any]], dict[str, Any]]


class GenerationError(ValueError):
    """A request that cannot be carried out; the message is one sentence for the user."""


@dataclass
class RealCustomOutput(BaseOutput):
    """What a call of the pipeline returns."""

    images: list[Image.Image]  # B pictures
    masks: list[list[Tensor]]  # for each picture M_hat (G, G') of every step that computed one; empty without a mask
    timings: dict[str, float]  # seconds: encode, guidance, generation, decode, total


@dataclass(frozen=True)
class MaskRecipe:
    """How the guidance branch makes the mask; see `RealCustomPlusPipeline.__call__` for the first three."""

    scope: float
    steps: int
    cross_downscales: tuple[int, ...]  # of the latent
    largest: int  # downscale of the latent to the largest attention grid
    downscales: tuple[int, ...]  # of all cross-attention layers
    indicator: Tensor  # (B, n_t), 1 at the target word's tokens


@dataclass
class _Run:
    """One generation: what stays the same over the steps, and what they change."""

    text: PromptEmbedding  # B rows
    both: PromptEmbedding  # unconditional rows, then `text`
    guidance_scale: float
    condition: VisualCondition | None
    recipe: MaskRecipe | None
    latents: Tensor  # (B, 4, h, w)
    masks: list[Tensor] = field(default_factory=list)  # one (B, G, G') a guided step
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
        image_encoders: Sequence[str] = ("clip",),
        shallow_layers: Sequence[Sequence[int]] = ((0, 1, 2),),
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
        subjects: Image.Image | Sequence[Image.Image] | None = None,
        words: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | None = None,
        steps: int = 25,
        guidance_scale: float = 5.0,
        use_mask: bool = True,
        mask_scope: float = 0.25,
        mask_steps: int = 12,
        mask_cross_downscales: Sequence[int] = (1,),
        visual_scale: float = 1.0,
        height: int | None = None,
        width: int | None = None,
        seeds: int | Sequence[int] = 0,
        latents: Tensor | None = None,
        callback_on_step_end: StepCallback | None = None,
    ) -> RealCustomOutput:
        """Paint one picture a prompt.

        Args:
            prompt: B prompts, or one.
            subjects: one picture a prompt, or one for all; None paints from text alone.
            words: for each prompt the word or phrase in it that the subject stands for, or one for all. Needed for
                the mask.
            negative_prompt: for the unconditional rows.
            steps: denoising steps.
            guidance_scale: omega of Eq. 15.
            use_mask: False lets the subject act on the whole picture.
            mask_scope: gamma_scope, the share of positions that the subject may take.
            mask_steps: T_stop; the guidance branch runs in the first so many steps.
            mask_cross_downscales: which cross-attention layers make the mask (see `model.mask_guidance`), as
                downscales of the largest attention grid.
            visual_scale: strength of the visual attention.
            height: of the pictures, pixels; by default the backbone's resolution.
            width: likewise.
            seeds: one a picture, so that a picture does not depend on its batch; an integer s means s, s + 1, ...
            latents: initial noise (B, 4, h, w) of unit variance, instead of seeds.
            callback_on_step_end: called as `callback(pipeline, step, timestep, {"latents": ..., "mask": ...})`;
                "latents" in the returned dict replaces the latents.

        Raises:
            GenerationError: a request that does not fit together.
            WordNotInPromptError: lists the prompt's words.
        """
        start = time.perf_counter()
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        size = (height or self.backbone.resolution, width or self.backbone.resolution)
        self._check(prompts, size, steps)
        recipe = condition = None
        if subjects is not None:
            self._check_adapter()
            if use_mask:
                recipe = self._recipe(prompts, words, size, mask_scope, mask_steps, mask_cross_downscales)
            condition = self._condition(_one_each(subjects, len(prompts), "subject pictures"), visual_scale)
        text = self.backbone.encode_prompt(prompts, size)
        empty = self.backbone.encode_negative_prompt(negative_prompt, len(prompts), size)
        self.scheduler.set_timesteps(steps, device=self.backbone.device)
        noise, generators = self._noise(len(prompts), size, seeds, latents)
        noise = noise * self.scheduler.init_noise_sigma
        run = _Run(text, PromptEmbedding.cat([empty, text]), guidance_scale, condition, recipe, noise)
        run.clock("encode", start)
        self._denoise(run, generators, callback_on_step_end)
        now = time.perf_counter()
        pictures = to_pictures(self.backbone.decode_latents(run.latents) / 2 + 0.5)
        run.timings["total"] = run.clock("decode", now) - start
        masks = [[mask[row].cpu() for mask in run.masks] for row in range(len(prompts))]
        return RealCustomOutput(images=pictures, masks=masks, timings=run.timings)

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

    def _check_adapter(self) -> None:
        if self.adapter is None:
            raise GenerationError("a subject was given, but this pipeline has no adapter.")
        if not self._processors():
            raise GenerationError("the adapter was detached from the base model; attach it or build a new pipeline.")

    def _recipe(
        self,
        prompts: list[str],
        words: str | Sequence[str] | None,
        size: Grid,
        scope: float,
        steps: int,
        cross_downscales: Sequence[int],
    ) -> MaskRecipe:
        if words is None:
            raise GenerationError("name the word of the prompt that the subject stands for, or switch the mask off.")
        if steps < 1:
            raise GenerationError(f"mask_steps is {steps}: the mask needs the guidance branch for at least 1 step.")
        positions = [
            self.backbone.token_positions(prompt, word)
            for prompt, word in zip(prompts, _one_each(words, len(prompts), "words"), strict=True)
        ]
        tokens = self.backbone.tokenizers[0].model_max_length
        layers = {processor.layer: processor.downscale for processor in self._processors()}
        largest = min(layers.values())
        scale = self.backbone.latent_scale
        try:
            top_count(scope, math.prod(grid_at((size[0] // scale, size[1] // scale), largest)))
        except ValueError as error:
            raise GenerationError(str(error)) from error
        present = tuple(sorted({downscale for layer, downscale in layers.items() if layer.endswith(".attn2")}))
        wanted = tuple(largest * downscale for downscale in cross_downscales)
        if not wanted or not set(wanted) <= set(present):
            raise GenerationError(
                f"mask_cross_downscales {list(cross_downscales)}: this base has cross-attention at downscales "
                f"{[downscale // largest for downscale in present]} of its largest attention grid."
            )
        indicator = token_indicator(positions, tokens).to(self.backbone.device)
        return MaskRecipe(scope, steps, wanted, largest, present, indicator)

    def _processors(self) -> list[VisualAttentionProcessor]:
        processors = self.backbone.unet.attn_processors.values()
        return [processor for processor in processors if isinstance(processor, VisualAttentionProcessor)]

    def _condition(self, pictures: list[Image.Image], scale: float) -> VisualCondition:
        """The subjects' keys and values, once for all steps."""
        assert self.adapter is not None
        assert self.image_encoders is not None
        # A picture that is given several times is encoded once.
        distinct = {id(picture): picture for picture in pictures}
        rows = torch.tensor([list(distinct).index(id(picture)) for picture in pictures])
        features = self.image_encoders.encode(list(distinct.values())).to(self.adapter.device, self.adapter.dtype)
        once = self.adapter(features).keys_values
        keys_values = {layer: (key[rows], value[rows]) for layer, (key, value) in once.items()}
        return VisualCondition(keys_values, scale=scale)

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
            guided = run.recipe is not None and step < run.recipe.steps
            branches = self._guided if guided else self._plain
            unconditional, conditional = branches(run, scaled, timestep)
            prediction = unconditional + run.guidance_scale * (conditional - unconditional)  # Eq. 15
            run.latents = self.scheduler.step(prediction, timestep, run.latents, **options).prev_sample
            if callback is not None:
                state = {"latents": run.latents, "mask": run.masks[-1] if run.masks else None}
                run.latents = callback(self, step, timestep, state).get("latents", run.latents)
        if not run.latents.isfinite().all():
            raise GenerationError("the latents became NaN or infinite; try a wider dtype or a lower guidance scale.")

    def _guided(self, run: _Run, latents: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """A step with the guidance branch: its mask, then the generation branch inside it."""
        assert run.recipe is not None
        assert run.condition is not None
        recipe, start = run.recipe, time.perf_counter()
        recorder = AttentionRecorder(len(latents), recipe.cross_downscales, (recipe.largest,))
        base = self.backbone.predict(torch.cat([latents, latents]), timestep, run.both, recorder=recorder)
        mask = guidance_mask(recorder.records, recipe.indicator, run.grid, recipe.largest, recipe.scope)
        run.masks.append(mask)
        run.condition = replace(run.condition, masks=layer_masks(mask, run.grid, recipe.downscales))
        now = run.clock("guidance", start)
        conditional = self.backbone.predict(latents, timestep, run.text, visual=run.condition)
        run.clock("generation", now)
        return base[: len(latents)], conditional

    def _plain(self, run: _Run, latents: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """A step without the guidance branch: text alone, no mask, or the last mask (early stop)."""
        start = time.perf_counter()
        attention = {} if run.condition is None else {"visual": run.condition}
        both = self.backbone.predict(torch.cat([latents, latents]), timestep, run.both, **attention)
        run.clock("generation", start)
        unconditional, conditional = both.chunk(2)
        return unconditional, conditional


def _one_each(given: Any, count: int, what: str) -> list[Any]:
    """A list as it is, a single value for every prompt."""
    values = [given] * count if isinstance(given, str | Image.Image) else list(given)
    if len(values) != count:
        raise GenerationError(f"{len(values)} {what} for {count} prompts; give one each, or one for all.")
    return values
