"""An adapter in a pipeline of diffusers:

    from diffusers import StableDiffusionXLPipeline
    from model.diffusers_pipelines.attachment import attach_adapter

    pipe = attach_adapter(StableDiffusionXLPipeline.from_pretrained("..."), "adapter/")
    picture = pipe("a dog in the snow", subjects=reference, words="dog").images[0]

The pipeline keeps its class's name, its parts and its arguments. Without `subjects` a call is the class's own. With
subjects, attention processors and hooks are on the UNet for the time of the call only, so whatever is done to the
pipeline between calls (schedulers, LoRA, attention slicing, offloading, saving) is as without an adapter.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from PIL import Image

from model.adapters.adapter import AdapterError, VisualAdapter
from model.adapters.image_encoder import ImageEncoders
from model.adapters.usage import USAGE_FILE, AdapterUsage
from model.backbone import Backbone, family_of
from model.diffusers_pipelines.guided_unet import GuidedUNet, SubjectRequest
from model.diffusers_pipelines.supported import check_pipeline, check_unet
from model.errors import GenerationError
from model.guidance.settings import InferenceSettings
from model.guidance.subjects import Subject, SubjectsOfPrompt, subjects_of
from model.methods.registry import load_adapter, method_of

PipelineT = TypeVar("PipelineT")
_ENCODER_OPTIONS = ("image_encoders", "shallow_layers", "reference_size", "tiles")


def attach_adapter(
    pipe: PipelineT,
    adapter: str | os.PathLike[str] | VisualAdapter,
    image_encoders: Mapping[str, Any] | ImageEncoders | None = None,
    settings: InferenceSettings | None = None,
) -> PipelineT:
    """Give a pipeline of diffusers subjects: `pipe(prompt, subjects=picture, words="dog", ...)`.

    The further arguments of a call are those of `RealCustomPipeline.__call__`: `subjects`, `words`, `settings`,
    `use_mask`, `visual_guidance_start` and `visual_guidance_end`. The number of steps and the guidance scale are those
    of the pipeline. If the prompt is given as `prompt_embeds`, its words are found in `embedded_prompt`.

    Args:
        pipe: One of `supported.PIPELINES`, of the base model that the adapter was trained on, or of one fine-tuned from
            it.
        adapter: Folder, hub id (`org/name` or `org/name@revision`), or a loaded one.
        image_encoders: Loaded, or arguments of `ImageEncoders.from_pretrained` that replace those of the adapter's
            `usage.json`, such as `{"image_encoders": ["./siglip", "./dino"]}`.
        settings: Defaults of a call's `settings`; None: those of `usage.json`.

    Returns:
        The same pipeline.

    Raises:
        AdapterError: The pipeline cannot have an adapter, the adapter does not fit it, or does not say what its image
            encoders are.
        ImageEncoderError: The image encoders cannot be loaded, or do not fit the adapter.
        OSError: The adapter's folder or hub id does not exist.
    """
    check_pipeline(pipe)
    parts: Any = pipe
    unet, dtype = _unet_of(pipe), parts.unet.dtype
    loaded = adapter if isinstance(adapter, VisualAdapter) else load_adapter(adapter, torch_dtype=dtype)
    loaded.check_fits(unet)
    loaded.eval().requires_grad_(False)
    encoders = _load_encoders(parts, loaded.usage, image_encoders)
    if encoders.width != loaded.config["image_width"]:
        raise AdapterError(
            f"the adapter needs image features of width {loaded.config['image_width']}, the image encoders have width "
            f"{encoders.width}."
        )
    encoders = method_of(loaded).prepare_encoders(encoders)
    default = settings or _own_settings(loaded, unet)
    detach_adapter(pipe)
    parts._attachment = Attachment(loaded, encoders, default)
    kind: Any = type(parts)
    parts.__class__ = _attached_class(kind)
    return pipe


def detach_adapter(pipe: PipelineT) -> PipelineT:
    """Take the adapter out: the pipeline is as it was before. Without one nothing happens."""
    parts: Any = pipe
    if parts.__dict__.pop("_attachment", None) is not None:
        parts.__class__ = type(parts).__mro__[1]
    return pipe


def _own_settings(adapter: VisualAdapter, unet: Any) -> InferenceSettings:
    """Those of the adapter's method, else of its `usage.json`, else the defaults."""
    adapter.attach(unet)
    try:
        own = method_of(adapter).own_settings(unet)
    finally:
        adapter.detach(unet)
    if own is not None:
        return own
    return InferenceSettings() if adapter.usage is None else adapter.usage.inference


def _load_encoders(
    pipe: Any, usage: AdapterUsage | None, given: Mapping[str, Any] | ImageEncoders | None
) -> ImageEncoders:
    if isinstance(given, ImageEncoders):
        return given
    options = {**(usage.image_encoders if usage is not None else {}), **(given or {})}
    missing = [name for name in _ENCODER_OPTIONS if name not in options]
    if missing:
        raise AdapterError(
            f"the adapter has no {USAGE_FILE} that names its image encoders; give attach_adapter image_encoders with "
            f"{', '.join(missing)}, as it was trained."
        )
    unknown = sorted(options.keys() - _ENCODER_OPTIONS)
    if unknown:
        raise AdapterError(f"image_encoders has no option {unknown[0]!r}; it has {', '.join(_ENCODER_OPTIONS)}.")
    return ImageEncoders.from_pretrained(
        backbone_folder=getattr(pipe.config, "_name_or_path", None), dtype=pipe.unet.dtype, **options
    )


@dataclass(frozen=True)
class Attachment:
    """What `attach_adapter` adds to a pipeline."""

    adapter: VisualAdapter
    encoders: ImageEncoders
    settings: InferenceSettings

    def call(self, pipe: Any, arguments: Mapping[str, Any], given: Mapping[str, Any]) -> GuidedUNet:
        """The hooks of a call.

        Args:
            pipe: The pipeline.
            arguments: Its own, by name.
            given: The subjects' arguments.

        Raises:
            GenerationError: The subjects do not fit the prompts; a word is not in its prompt.
            AdapterError: The UNet has been changed in a way that subjects cannot stand beside.
        """
        check_unet(pipe.unet)
        backbone = _backbone_of(pipe)
        request = self._request(pipe, backbone, arguments, given)
        device, method = pipe._execution_device, method_of(self.adapter)
        self.adapter.to(device)
        self.encoders.to(device)
        branch = method.generation_branch(self.adapter, self.encoders, request.subjects, request.settings)
        if getattr(pipe, "_all_hooks", None):  # offloading: the UNet needs the room
            self.encoders.to("cpu")
        return GuidedUNet(pipe, backbone, method, branch, request)

    def _request(
        self, pipe: Any, backbone: Backbone, arguments: Mapping[str, Any], given: Mapping[str, Any]
    ) -> SubjectRequest:
        settings = given["settings"] or self.settings
        prompts = _prompts(pipe, arguments, given["embedded_prompt"], needs_words=given["use_mask"])
        named = subjects_of(prompts, given["subjects"], given["words"], settings.mask_scope, settings.visual_scale)
        if given["use_mask"]:
            for prompt, of_prompt in zip(prompts, named, strict=True):
                for one in of_prompt:
                    if one.word is not None:
                        backbone.token_positions(prompt, one.word)
        each = arguments.get("num_images_per_prompt") or 1
        return SubjectRequest(
            prompts=[prompt for prompt in prompts for _ in range(each)],
            subjects=[of_prompt for of_prompt in named for _ in range(each)],
            settings=settings,
            use_mask=given["use_mask"],
            start=given["visual_guidance_start"],
            end=given["visual_guidance_end"],
        )


def _prompts(
    pipe: Any, arguments: Mapping[str, Any], embedded: str | Sequence[str] | None, *, needs_words: bool
) -> list[str]:
    """The prompts as the first tokenizer gets them: a Textual Inversion's word may stand for several tokens."""
    prompt, embeds = arguments.get("prompt"), arguments.get("prompt_embeds")
    if prompt is None and embeds is None:
        raise GenerationError("give prompt or prompt_embeds.")
    given = embedded if prompt is None else prompt
    if given is None:
        if needs_words:
            raise GenerationError(
                "prompt_embeds have no words: give the prompt that they were made from as embedded_prompt, or use_mask="
                "False."
            )
        given = [""] * len(arguments["prompt_embeds"])
    prompts = [given] if isinstance(given, str) else list(given)
    if embeds is not None and len(prompts) != len(embeds):
        raise GenerationError(f"embedded_prompt has {len(prompts)} prompts, prompt_embeds have {len(embeds)}.")
    if needs_words and embeds is not None and embeds.shape[1] != pipe.tokenizer.model_max_length:
        raise GenerationError(
            f"prompt_embeds have {embeds.shape[1]} tokens, not the {pipe.tokenizer.model_max_length} of the tokenizer, "
            "so words cannot be found in them; use_mask=False needs none."
        )
    convert = getattr(pipe, "maybe_convert_prompt", None)  # T2I-Adapter's pipelines have no Textual Inversion
    return prompts if convert is None else [convert(one, pipe.tokenizer) for one in prompts]


def _unet_of(pipe: Any) -> Any:
    """The UNet itself: `torch.compile` puts a module around it."""
    return getattr(pipe.unet, "_orig_mod", pipe.unet)


def _backbone_of(pipe: Any) -> Backbone:
    """The pipeline's parts, for the code that finds words and masks."""
    return Backbone(
        vae=pipe.vae,
        unet=_unet_of(pipe),
        scheduler=pipe.scheduler,
        tokenizers=[pipe.tokenizer],
        text_encoders=[pipe.text_encoder],
        family=family_of(pipe.unet.config),
    )


@functools.cache
def _attached_class(kind: type) -> type:
    """A subclass with the name of its base, so that diffusers saves and converts its pipelines as before."""
    own_call: Any = kind.__call__
    signature = inspect.signature(own_call)

    @functools.wraps(own_call)
    def call(
        self: Any,
        *args: Any,
        subjects: Image.Image | Subject | Sequence[SubjectsOfPrompt] | None = None,
        words: str | Sequence[str] | None = None,
        settings: InferenceSettings | None = None,
        use_mask: bool = True,
        visual_guidance_start: float = 0.0,
        visual_guidance_end: float = 1.0,
        embedded_prompt: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        if subjects is None:
            return own_call(self, *args, **kwargs)
        given = {
            "subjects": subjects,
            "words": words,
            "settings": settings,
            "use_mask": use_mask,
            "visual_guidance_start": visual_guidance_start,
            "visual_guidance_end": visual_guidance_end,
            "embedded_prompt": embedded_prompt,
        }
        attachment: Attachment = self._attachment
        with torch.no_grad():
            guided = attachment.call(self, signature.bind(self, *args, **kwargs).arguments, given)
        unet = _unet_of(self)
        attachment.adapter.attach(unet)
        try:
            with guided.hooked():
                return own_call(self, *args, **kwargs)
        finally:
            attachment.adapter.detach(unet)

    return type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
