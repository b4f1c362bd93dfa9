"""The pipeline of RealCustom (Sec. 3.3) and RealCustom++ (Secs. III-D and III-E): from a request to pictures.

The adapter decides the method (`model.methods`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from model.adapters.adapter import AdapterError, VisualAdapter, attach_processors
from model.adapters.image_encoder import ImageEncoders
from model.adapters.visual_attention import VisualAttentionProcessor, attached_processors
from model.backbone import Backbone, load_backbone
from model.dci.auxiliary_branch import AuxiliaryBranch, auxiliary_steps
from model.dci.prompts import BranchPrompts
from model.dci.settings import DCISettings
from model.errors import GenerationError
from model.guidance.denoising import Generation, SubjectGuidance
from model.guidance.mask_recipe import mask_plan
from model.guidance.masks import Grid
from model.guidance.runs import DenoisingRun, take_step
from model.guidance.samplers import new_scheduler
from model.guidance.sampling import check_request, initial_noise, scheduler_of_steps
from model.guidance.schedule import subject_steps
from model.guidance.settings import InferenceSettings
from model.guidance.subjects import Subject, SubjectsOfPrompt, subjects_of
from model.methods.registry import load_adapter, method_of, read_method
from model.offload import accelerator, offload
from model.pictures.tensors import to_pictures
from model.pipeline_output import RealCustomOutput

StepCallback = Callable[["RealCustomPipeline", int, Tensor, dict[str, Any]], dict[str, Any]]


class RealCustomPipeline:
    """Generates pictures from prompts in which words can be replaced by subject pictures.

        pipeline = RealCustomPipeline.from_pretrained("backbone/", "adapter/")
        settings = InferenceSettings(mask_every=3)
        output = pipeline("a mug in the snow", subject_picture, "mug", settings=settings, seeds=1)

    Args:
        backbone: the frozen base model. The adapter is attached to its UNet; calls without a subject still compute the
            base model, and `adapter.detach(backbone.unet)` detaches it.
        adapter: of any method; None generates from text alone.
        image_encoders: needed with an adapter.
        scheduler: any diffusers scheduler; None: the settings' `sampler` with the backbone's noise schedule.

    Raises:
        AdapterError: the adapter does not fit the base model or the image encoders.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapter: VisualAdapter | None = None,
        image_encoders: ImageEncoders | None = None,
        scheduler: Any = None,
    ) -> None:
        method = None if adapter is None else method_of(adapter)
        self.backbone = backbone if method is None else method.prepare_backbone(backbone)
        self.adapter = adapter
        self.image_encoders = image_encoders
        if method is not None and image_encoders is not None:
            self.image_encoders = method.prepare_encoders(image_encoders)
        self.scheduler = scheduler
        self._offloaded: list[Any] = []  # accelerate's hooks
        if adapter is not None:
            width, needed = (
                image_encoders.width if image_encoders is not None else "none",
                adapter.config["image_width"],
            )
            if width != needed:
                raise AdapterError(
                    f"the adapter needs image features of width {needed}, the image encoders have width {width}."
                )
            adapter.eval().attach(backbone.unet)

    @classmethod
    def from_pretrained(
        cls,
        backbone: str | Path,
        adapter: str | Path | None = None,
        image_encoders: Sequence[str] | None = None,
        shallow_layers: Sequence[Sequence[int]] | None = None,
        reference_size: int | None = None,
        tiles: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        on_part: Callable[[str], None] = lambda part: None,
    ) -> "RealCustomPipeline":
        """Load all parts from folders or hub ids.

        Args:
            backbone: see `load_backbone`.
            adapter: of any method; its `config.json` says which.
            image_encoders: see `ImageEncoders.from_pretrained`; None: see `Method.loading_options`, also for the next
                three.
            shallow_layers: of each image encoder.
            reference_size: of the image encoders, pixels.
            tiles: of the high-resolution reference, along a side.
            dtype: of the weights.
            device: of the weights.
            on_part: called with the name of each part before it is loaded.
        """
        if adapter is None:
            on_part("backbone")
            return cls(load_backbone(backbone, dtype, device))
        method, config = read_method(adapter)
        given = {
            "image_encoders": image_encoders,
            "shallow_layers": shallow_layers,
            "reference_size": reference_size,
            "tiles": tiles,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        options = method.loading_options(config, backbone, chosen)
        on_part("backbone")
        base = load_backbone(backbone, dtype, device)
        on_part("image encoders")
        encoders = ImageEncoders.from_pretrained(backbone_folder=backbone, dtype=dtype, device=device, **options)
        on_part("adapter")
        return cls(base, load_adapter(adapter, torch_dtype=dtype).to(device), encoders)

    @property
    def default_settings(self) -> InferenceSettings:
        """Of requests that have none of their own: those that come with the adapter, or the defaults of the class."""
        return self.settings_over(InferenceSettings(), {})

    def settings_over(self, configured: InferenceSettings, chosen: Mapping[str, Any]) -> InferenceSettings:
        """The settings of a configuration; with an adapter that has its own, these with the user's choices over them.

        Args:
            configured: all of the configuration.
            chosen: the values of it that the user has chosen, by name.

        Raises:
            GenerationError: the choices do not fit the adapter's settings.
        """
        own = None if self.adapter is None else method_of(self.adapter).own_settings(self.backbone.unet)
        return configured if own is None else own.with_values(chosen)

    def scheduler_of(self, settings: InferenceSettings, device: torch.device | str | None = None) -> Any:
        """A scheduler for one run, with its timesteps.

        Args:
            settings: of the run.
            device: of the timesteps; by default the backbone's.

        Raises:
            GenerationError: the noise schedule has fewer timesteps than steps.
        """
        scheduler, config = self.scheduler, self.backbone.scheduler.config
        if scheduler is None:
            of_method = None if self.adapter is None else method_of(self.adapter).new_scheduler
            scheduler = (of_method or new_scheduler)(settings.sampler, config)
        return scheduler_of_steps(scheduler, settings.steps, torch.device(device or self.backbone.device))

    def enable_model_cpu_offload(self, device: torch.device | str | None = None) -> None:
        """Keep the models on the CPU and move each to the accelerator only while it runs, as in diffusers' pipelines.

        The adapter stays on the accelerator: RealCustom calls it between two passes of the UNet.

        Args:
            device: with its index; by default the current accelerator.

        Raises:
            ModelError: there is no accelerator.
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
        settings: InferenceSettings | None = None,
        dci: DCISettings | None = None,
        negative_prompt: str | None = None,
        use_mask: bool = True,
        visual_guidance_start: float = 0.0,
        visual_guidance_end: float = 1.0,
        height: int | None = None,
        width: int | None = None,
        seeds: int | Sequence[int] = 0,
        latents: Tensor | None = None,
        callback_on_step_end: StepCallback | None = None,
    ) -> RealCustomOutput:
        """Generate one picture for each prompt.

        Args:
            prompt: B prompts, or one.
            subjects: for each prompt a picture, a `Subject` or a list of `Subject`s, or one picture or `Subject` for
                all; None generates from text alone.
            words: for each picture the word or phrase of the prompt that it stands for, or one for all; needed for the
                mask. A `Subject` has its own.
            settings: `default_settings` if None; `dataclasses.replace` changes a single value of these.
            dci: the learned concept that the prompts contain, and how DCI generates its context in a second branch;
                None generates in one branch.
            negative_prompt: for the unconditional rows; None: the method's, if it has one.
            use_mask: False lets the subjects act on the whole picture.
            visual_guidance_start: share of the steps before the subjects start to act.
            visual_guidance_end: share of the steps after which they stop.
            height: of the pictures, pixels; by default the backbone's resolution.
            width: of the pictures, pixels; by default the backbone's resolution.
            seeds: one for each picture, so that a picture does not depend on its batch; an integer s means
                s, s + 1, ...
            latents: initial noise (B, 4, h, w) of unit variance, instead of seeds.
            callback_on_step_end: called as `callback(pipeline, step, timestep, {"latents": ..., "clean": ..., "masks":
                ...})`; "clean" are the latents of the finished pictures as this step predicts them, the masks are the
                latest (B, S, G, G') or None. "latents" in the returned dict replaces the latents.

        Raises:
            GenerationError: the request does not fit together, or a word is not in its prompt.
        """
        run = self.start(
            prompt,
            subjects,
            words,
            settings=settings,
            dci=dci,
            negative_prompt=negative_prompt,
            use_mask=use_mask,
            visual_guidance_start=visual_guidance_start,
            visual_guidance_end=visual_guidance_end,
            height=height,
            width=width,
            seeds=seeds,
            latents=latents,
        )
        while not run.is_finished:
            self.step([run])
            if callback_on_step_end is not None:
                self._call_back(callback_on_step_end, run)
        return self.finish(run)

    @torch.no_grad()
    def start(
        self,
        prompt: str | Sequence[str],
        subjects: Image.Image | Subject | Sequence[SubjectsOfPrompt] | None = None,
        words: str | Sequence[str] | None = None,
        *,
        settings: InferenceSettings | None = None,
        dci: DCISettings | None = None,
        negative_prompt: str | None = None,
        use_mask: bool = True,
        visual_guidance_start: float = 0.0,
        visual_guidance_end: float = 1.0,
        height: int | None = None,
        width: int | None = None,
        seeds: int | Sequence[int] = 0,
        latents: Tensor | None = None,
    ) -> DenoisingRun:
        """Encode a request, without a step: for callers that take the steps of many requests together.

        Arguments and errors are those of `__call__`, which does the same as this:

            run = pipeline.start(...)
            while not run.is_finished:
                pipeline.step([run])
            output = pipeline.finish(run)
        """
        start = time.perf_counter()
        settings = settings or self.default_settings
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        size = (height or self.backbone.resolution, width or self.backbone.resolution)
        check_request(prompts, size, settings.steps, self.backbone.latent_scale)
        cut_off = [self.backbone.cut_off(prompt) for prompt in prompts]
        scheduler = self.scheduler_of(settings)
        scale = self.backbone.latent_scale
        shape = (self.backbone.unet.config.in_channels, size[0] // scale, size[1] // scale)
        noise, generators = initial_noise(len(prompts), shape, seeds, latents)
        noise = noise.to(self.backbone.device, self.backbone.dtype)
        auxiliary, guidance = None, None
        if dci is not None and dci.auxiliary_share:
            branches = BranchPrompts.of(self.backbone, prompts, dci)
            processors = self._dci_processors(with_subjects=subjects is not None)
            auxiliary = AuxiliaryBranch.of(self.backbone, processors, scheduler, branches, dci, size, noise, generators)
            prompts = branches.concept
        if subjects is not None:
            named = subjects_of(prompts, subjects, words, settings.mask_scope, settings.visual_scale)
            steps = subject_steps(len(scheduler.timesteps), visual_guidance_start, visual_guidance_end)
            guidance = self._subject_guidance(prompts, named, steps, size, settings, use_mask=use_mask)
        generation = Generation(
            text=self.backbone.encode_prompt(prompts, size),
            empty=self.backbone.encode_negative_prompt(negative_prompt, len(prompts), size),
            guidance_scale=settings.guidance_scale,
            image_guidance_scale=settings.image_guidance_scale,
            guidance=guidance,
            auxiliary=auxiliary,
            latents=noise * scheduler.init_noise_sigma,
        )
        generation.clock("encode", start)
        return DenoisingRun(
            generation=generation,
            guidance=guidance,
            scheduler=scheduler,
            generators=generators,
            cut_off=cut_off,
            started=start,
        )

    @torch.no_grad()
    def step(self, runs: Sequence[DenoisingRun]) -> None:
        """Take the next step of each run: see `take_step`."""
        take_step(self.backbone, self.adapter, runs)

    @torch.no_grad()
    def finish(self, run: DenoisingRun) -> RealCustomOutput:
        """Decode the pictures of a run that has taken all steps.

        Raises:
            GenerationError: its latents are not finite.
        """
        run.check_finite()
        generation, guidance = run.generation, run.guidance
        now = time.perf_counter()
        pictures = to_pictures(self.backbone.decode_latents(generation.latents) / 2 + 0.5)
        for hook in self._offloaded:
            hook.offload()
        generation.timings["total"] = generation.clock("decode", now) - run.started
        count = len(pictures)
        return RealCustomOutput(
            images=pictures,
            masks=[[] for _ in range(count)] if guidance is None else guidance.masks_of_pictures(count),
            timings=generation.timings,
            aggregation_masks=[] if generation.auxiliary is None else generation.auxiliary.masks_of_pictures(count),
            timesteps=[int(timestep) for timestep in run.scheduler.timesteps],
            cut_off=run.cut_off,
        )

    def check(
        self,
        prompt: str,
        subjects: Sequence[Subject],
        *,
        settings: InferenceSettings,
        size: Grid,
        dci: DCISettings | None = None,
        use_mask: bool = True,
        visual_guidance_start: float = 0.0,
        visual_guidance_end: float = 1.0,
    ) -> None:
        """Refuse a request for one picture that a call would refuse, without computing it.

        Args:
            prompt: of the picture.
            subjects: of the prompt; none: from text alone.
            settings: see `__call__`, also for the others.
            size: height and width of the picture, pixels.
            dci: see `__call__`.

        Raises:
            GenerationError: as `__call__`.
        """
        check_request([prompt], size, settings.steps, self.backbone.latent_scale)
        scheduler = self.scheduler_of(settings)
        if dci is not None and dci.auxiliary_share:
            auxiliary_steps(scheduler, dci)
            BranchPrompts.of(self.backbone, [prompt], dci)
            self._dci_processors(with_subjects=bool(subjects))
        if subjects:
            named = subjects_of([prompt], [subjects], None, settings.mask_scope, settings.visual_scale)
            steps = subject_steps(settings.steps, visual_guidance_start, visual_guidance_end)
            mask_plan(self.backbone, self._attached_processors(), [prompt], named, steps, size, settings, use_mask)

    def _subject_guidance(
        self,
        prompts: list[str],
        subjects: list[list[Subject]],
        steps: range,
        size: Grid,
        settings: InferenceSettings,
        *,
        use_mask: bool,
    ) -> SubjectGuidance:
        """The subjects of a request before the first step."""
        if self.adapter is None or self.image_encoders is None:
            raise GenerationError("the request has a subject, but this pipeline has no adapter.")
        processors = self._attached_processors()
        schedule, recipe = mask_plan(self.backbone, processors, prompts, subjects, steps, size, settings, use_mask)
        branch = method_of(self.adapter).generation_branch(self.adapter, self.image_encoders, subjects, settings)
        latent = (size[0] // self.backbone.latent_scale, size[1] // self.backbone.latent_scale)
        return SubjectGuidance.of(branch, steps, schedule, recipe, latent)

    def _attached_processors(self) -> list[VisualAttentionProcessor]:
        processors = attached_processors(self.backbone.unet)
        if not processors:
            raise GenerationError("the adapter was detached from the base model; attach it or build a new pipeline.")
        return processors

    def _dci_processors(self, *, with_subjects: bool) -> list[VisualAttentionProcessor]:
        """The attention processors, in which DCI's branches meet; without an adapter they are attached here."""
        if self.adapter is None and not attached_processors(self.backbone.unet):
            attach_processors(self.backbone.unet)
        if self.adapter is not None and with_subjects and not method_of(self.adapter).takes_auxiliary_branch:
            which = "released weights" if self.adapter.config.get("inference") == "release" else ""
            raise GenerationError(
                f"DCI cannot run beside subjects of {which or self.adapter.method_name}, which need a second branch "
                "themselves; generate without subjects, or with a trained adapter of RealCustom++."
            )
        return self._attached_processors()

    def _call_back(self, callback: StepCallback, run: DenoisingRun) -> None:
        generation, number = run.generation, run.steps_taken - 1
        state = {"latents": generation.latents, "clean": run.clean_latents(), "masks": run.masks()}
        generation.latents = callback(self, number, run.scheduler.timesteps[number], state).get(
            "latents", generation.latents
        )
