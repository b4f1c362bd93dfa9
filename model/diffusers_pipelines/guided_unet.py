"""Both branches of mask-guided inference inside a pipeline's own denoising loop (RealCustom++ Sec. III-D).

The pipeline calls its UNet once a step, with unconditional rows first if it uses classifier-free guidance. A hook
before that call runs the guidance branch for the conditional rows, and adds the references' condition to the call's
arguments; the pipeline does the rest: guidance, rescaling, its scheduler. A method whose guided prediction also has the
text branch's (RealCustom Eq. 13) changes the conditional rows after the call, so that the pipeline's guidance gives it.

Legend of shapes: B conditional rows, R rows of the call (B, or 2 B with unconditional rows first).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from model.adapters.visual_attention import attached_processors
from model.backbone import Backbone
from model.errors import GenerationError
from model.guidance.denoising import SubjectGuidance
from model.guidance.generation_branch import DenoisingStep, GenerationBranch
from model.guidance.guidance_branch import PassEnded
from model.guidance.mask_recipe import mask_plan
from model.guidance.schedule import subject_steps
from model.guidance.settings import InferenceSettings
from model.guidance.subjects import Subject
from model.methods.method import Method

#: Arguments of the UNet that have a row for each picture; ControlNet's and T2I-Adapter's are lists of them.
_ROW_ARGUMENTS = (
    "encoder_hidden_states",
    "class_labels",
    "timestep_cond",
    "encoder_attention_mask",
    "added_cond_kwargs",
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)


@dataclass(frozen=True)
class SubjectRequest:
    """The subjects of a call of a pipeline, for its B conditional rows."""

    prompts: list[str]
    subjects: list[list[Subject]]
    settings: InferenceSettings
    use_mask: bool
    start: float
    end: float


@dataclass
class GuidedUNet:
    """The hooks of one call of a pipeline.

    Attributes:
        pipe: The pipeline, with an attached UNet.
        backbone: Its parts.
        method: Of the adapter.
        branch: The encoded references.
        request: Their subjects.
    """

    pipe: Any
    backbone: Backbone
    method: Method[Any]
    branch: GenerationBranch
    request: SubjectRequest
    _steps_taken: int = 0
    _guidance: SubjectGuidance | None = None
    _in_branch: bool = False  # the hooks leave the guidance branch's own pass alone
    _text: Tensor | None = field(default=None, repr=False)  # the text branch's prediction (B, 4, h, w)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """The hooks are on the UNet within this context."""
        unet = self.pipe.unet
        handles = [
            unet.register_forward_pre_hook(self._before, with_kwargs=True),
            unet.register_forward_hook(self._after),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Find the masks of a step; returns the UNet's arguments with the references' condition."""
        if self._in_branch:
            return None
        arguments = {**dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False)), **kwargs}
        guidance = self._guidance or self._start(arguments["sample"])
        step = self._next_step(arguments)
        if not guidance.acts(step.number):
            return None
        guidance.extrapolate_masks(step.number)
        if guidance.is_guided(step.number):
            recorder = guidance.recorder(ends_pass=not self.method.guides_by_text_branch)
            text = self._run_text_branch(unet, arguments, len(step.latents), recorder=recorder)
            guidance.find_masks(recorder.maps())
        elif self.method.guides_by_text_branch:
            text = self._run_text_branch(unet, arguments, len(step.latents))
        if self.method.guides_by_text_branch:
            self._text = text
        conditions = guidance.conditions(step)
        if not self.pipe.do_classifier_free_guidance:  # the call has no unconditional rows
            conditions = [replace(one, unconditional=None) for one in conditions]
        return (), _with_attention(arguments, visual=conditions)

    def _after(self, unet: Any, args: tuple[Any, ...], output: Any) -> Any:
        """Put the text branch's prediction into the conditional rows, for methods that use it."""
        if self._in_branch or self._text is None:
            return None
        prediction = output[0]
        rows = len(self._text)
        guidance_scale = self.pipe.guidance_scale if self.pipe.do_classifier_free_guidance else 1.0
        conditional = self.method.conditional_rows(
            self._text, prediction[-rows:], guidance_scale, self.request.settings.image_guidance_scale
        )
        self._text = None
        changed = torch.cat([prediction[:-rows], conditional])
        return (changed, *output[1:]) if isinstance(output, tuple) else type(output)(sample=changed)

    def _start(self, sample: Tensor) -> SubjectGuidance:
        """The masks' state before the first step; now the latents' size and the number of steps are known."""
        total = getattr(self.pipe, "_num_timesteps", None) or len(self.pipe.scheduler.timesteps)
        latent = (sample.shape[-2], sample.shape[-1])
        size = (latent[0] * self.backbone.latent_scale, latent[1] * self.backbone.latent_scale)
        request = self.request
        steps = subject_steps(total, request.start, request.end)
        processors = attached_processors(self.backbone.unet)
        schedule, recipe = mask_plan(
            self.backbone,
            processors,
            request.prompts,
            request.subjects,
            steps,
            size,
            request.settings,
            request.use_mask,
        )
        self._guidance = SubjectGuidance.of(self.branch, steps, schedule, recipe, latent)
        return self._guidance

    def _next_step(self, arguments: dict[str, Any]) -> DenoisingStep:
        sample, timestep, text = (arguments[name] for name in ("sample", "timestep", "encoder_hidden_states"))
        rows = len(sample) // 2 if self.pipe.do_classifier_free_guidance else len(sample)
        if rows != len(self.request.prompts):
            raise GenerationError(
                f"the pipeline paints {rows} pictures at once, but the subjects are for {len(self.request.prompts)}."
            )
        step = DenoisingStep(
            number=self._steps_taken,
            timestep=torch.as_tensor(timestep),
            latents=sample[-rows:, : self.backbone.vae.config.latent_channels],
            alpha_bar=self._alpha_bar(timestep).to(sample.device).expand(rows),
            text=text[-rows:],
        )
        self._steps_taken += 1
        return step

    def _alpha_bar(self, timestep: Any) -> Tensor:
        index = torch.as_tensor(timestep).flatten()[0].long().cpu()
        alphas: Tensor | None = getattr(self.pipe.scheduler, "alphas_cumprod", None)
        if alphas is None or index >= len(alphas):
            if self.method.guides_by_text_branch:  # RealCustom scores the image tokens by the timestep's noise
                raise GenerationError(
                    f"{type(self.pipe.scheduler).__name__} has no alphas_cumprod, which {self.method.name} needs; use "
                    "another scheduler, such as DDIMScheduler."
                )
            return torch.ones(())  # not used
        return alphas[index]

    def _run_text_branch(self, unet: Any, arguments: dict[str, Any], rows: int, **attention: Any) -> Any:
        """A pass of the conditional rows with text alone: its prediction (B, 4, h, w), or None if it ends early."""
        own = {name: value for name, value in arguments.items() if name != "return_dict"}
        total = len(own["sample"])
        last = _rows_of(total, rows)
        own["sample"] = last(own["sample"])
        own["timestep"] = last(own["timestep"])
        own |= {name: _each(last, own[name]) for name in _ROW_ARGUMENTS if own.get(name) is not None}
        self._in_branch = True
        try:
            with suppress(PassEnded):
                return unet(**_with_attention(own, **attention), return_dict=False)[0]
        finally:
            self._in_branch = False
        return None


def _with_attention(arguments: dict[str, Any], **attention: Any) -> dict[str, Any]:
    """The UNet's arguments with more for its attention processors; a LoRA's scale stays among them."""
    merged = {**(arguments.get("cross_attention_kwargs") or {}), **attention}
    return {**arguments, "cross_attention_kwargs": merged or None}


def _rows_of(total: int, rows: int) -> Callable[[Any], Any]:
    """A function that takes the last rows of a tensor that has them all; others stay as they are."""

    def last(value: Any) -> Any:
        has_rows = isinstance(value, Tensor) and value.ndim > 0 and len(value) == total
        return value[-rows:] if has_rows else value

    return last


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """A new container: the UNet takes elements out of T2I-Adapter's list."""
    if isinstance(value, dict):
        return {name: change(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(change(one) for one in value)
    return change(value)
