"""Which pipelines of diffusers take an adapter, and what each pipeline needs for it."""

from __future__ import annotations

from typing import Any

import diffusers
from torch import nn

from model.adapters.adapter import AdapterError

#: Text-to-image, image-to-image, inpainting, each alone, with ControlNet and with T2I-Adapter.
PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionControlNetInpaintPipeline",
    "StableDiffusionAdapterPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLControlNetPipeline",
    "StableDiffusionXLControlNetImg2ImgPipeline",
    "StableDiffusionXLControlNetInpaintPipeline",
    "StableDiffusionXLAdapterPipeline",
)
#: Attention processors that compute plain attention, which visual attention can stand beside.
_PLAIN_PROCESSORS = {
    "AttnProcessor",
    "AttnProcessor2_0",
    "AttnProcessorNPU",
    "FusedAttnProcessor2_0",
    "SlicedAttnProcessor",
    "XFormersAttnProcessor",
    "XLAFlashAttnProcessor2_0",
}


def check_pipeline(pipe: Any) -> None:
    """Refuse a pipeline that no adapter can be attached to.

    Raises:
        AdapterError: It is of another class or an SDXL refiner; says what to do.
    """
    name = type(pipe).__name__
    if not any(isinstance(pipe, getattr(diffusers, known)) for known in PIPELINES):
        raise AdapterError(f"an adapter cannot be attached to a {name}; it needs one of {', '.join(PIPELINES)}.")
    if pipe.tokenizer is None or pipe.text_encoder is None:
        raise AdapterError(
            f"this {name} has no first text encoder, as an SDXL refiner or a pipeline for prompt_embeds has none; "
            "attach the adapter to a base pipeline that has all its parts."
        )


def check_unet(unet: nn.Module) -> None:
    """Refuse a UNet whose attention has been changed by something that visual attention would undo.

    Raises:
        AdapterError: It has an IP-Adapter or other attention processors, or is compiled in place; says what to do.
    """
    if getattr(unet, "_compiled_call_impl", None) is not None:
        raise AdapterError(
            "the UNet was compiled in place, which takes subjects into the compiled code; use "
            "pipe.unet = torch.compile(pipe.unet) instead of pipe.unet.compile()."
        )
    processors: Any = unet.attn_processors
    others = sorted({type(one).__name__ for one in processors.values()} - _PLAIN_PROCESSORS)
    if any(name.startswith("IPAdapter") for name in others):
        raise AdapterError(
            "an IP-Adapter is loaded, and both would act in the same attention; call pipe.unload_ip_adapter() before a "
            "picture with subjects."
        )
    if others:
        raise AdapterError(
            f"the UNet has attention processors that subjects cannot stand beside ({', '.join(others)}); call "
            "pipe.unet.set_default_attn_processor() before a picture with subjects."
        )
