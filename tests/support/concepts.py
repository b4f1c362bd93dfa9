"""Concepts with random values that fit a model, for each method, and what is compared before and after loading."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from model.concepts.concept import Concept, ConceptToken, LoraLayer
from model.concepts.model_parts import ModelParts

PROMPT = "a photo of [v] cat"
_LORA_LAYERS = ("to_q", "to_k", "to_out.0", "q_proj", "v_proj", "out_proj", "conv1", "proj_in", "ff.net.2", "emb_proj")


def textual_inversion(model: Any, placeholder: str = "[v]", vectors: int = 1) -> Concept:
    embeddings = tuple(torch.randn(vectors, width) for width in ModelParts.of(model).widths)
    return _concept("textual_inversion", placeholder, embeddings=embeddings)


def several_vectors(model: Any, placeholder: str = "[v]") -> Concept:
    return textual_inversion(model, placeholder, vectors=3)


def xti(model: Any, placeholder: str = "[v]", vectors: int = 1) -> Concept:
    parts = ModelParts.of(model)
    layers = {name: tuple(torch.randn(vectors, width) for width in parts.widths) for name in parts.cross_attention()}
    return _concept("xti", placeholder, layer_embeddings=layers)


def custom_diffusion(model: Any, placeholder: str = "[v]") -> Concept:
    pairs = {
        name: (_near(layer.to_k.weight), _near(layer.to_v.weight))
        for name, layer in ModelParts.of(model).cross_attention().items()
    }
    token = textual_inversion(model, placeholder).tokens[0]
    return Concept(method="custom_diffusion", backbone="tiny", tokens=(token,), cross_attention=pairs)


def dreambooth(model: Any, placeholder: str = "sks") -> Concept:
    layers = ModelParts.of(model).layers().items()
    lora = {
        name: _lora(layer, rank=2 + (number % 3 == 0)) for number, (name, layer) in enumerate(layers) if _has_lora(name)
    }
    token = ConceptToken(placeholder=placeholder, word="cat", subject="tom")
    return Concept(method="dreambooth", backbone="tiny", tokens=(token,), lora=lora)


def whole_models(model: Any, placeholder: str = "sks") -> Concept:
    weights = {name: _near(getattr(module, own)) for name, (module, own) in ModelParts.of(model).parameters().items()}
    token = ConceptToken(placeholder=placeholder, word="cat", subject="tom")
    return Concept(method="dreambooth", backbone="tiny", tokens=(token,), weights=weights)


METHODS: dict[str, Callable[[Any], Concept]] = {
    "textual_inversion": textual_inversion,
    "several_vectors": several_vectors,
    "xti": xti,
    "custom_diffusion": custom_diffusion,
    "dreambooth": dreambooth,
    "whole_models": whole_models,
}


def _concept(method: str, placeholder: str, **learned: Any) -> Concept:
    token = ConceptToken(placeholder=placeholder, word="cat", subject="tom", **learned)
    return Concept(method=method, backbone="tiny", tokens=(token,))


def _near(weight: Tensor) -> Tensor:
    return weight.detach() + 0.3 * torch.randn_like(weight)


def _has_lora(name: str) -> bool:
    return name.endswith(_LORA_LAYERS)


def _lora(layer: Any, rank: int) -> LoraLayer:
    out, into, *kernel = layer.weight.shape
    return LoraLayer(0.2 * torch.randn(rank, into, *kernel), torch.randn(out, rank, *[1 for _ in kernel]))


def diffusers_pipeline(folder: Any) -> DiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.safety_checker = None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def paint(pipeline: Any, prompt: str = PROMPT) -> np.ndarray[Any, Any]:
    """A picture of diffusers' pipeline."""
    generator = torch.Generator().manual_seed(0)
    size = {"height": 32, "width": 32}
    return pipeline(prompt, num_inference_steps=2, generator=generator, output_type="np", **size).images[0]


def state_of(model: Any) -> dict[str, Any]:
    """All that loading touches: weights by identity and value, hooks, processors, tokenizers, settings."""
    parts = ModelParts.of(model)
    state: dict[str, Any] = {}
    for number, module in enumerate((parts.unet, *parts.text_encoders)):
        for name, tensor in module.state_dict(keep_vars=True).items():
            state[f"{number}.{name}"] = (id(tensor), tensor.detach().numpy().tobytes())
        state[f"{number} hooks"] = _hooks(module)
        state[f"{number} ends"] = [getattr(part, "eos_token_id", None) for part in module.modules()]
    state["processors"] = [id(processor) for processor in parts.unet.attn_processors.values()]
    state["tokenizers"] = [id(tokenizer.backend_tokenizer) for tokenizer in parts.tokenizers]
    state["lengths"] = [len(tokenizer) for tokenizer in parts.tokenizers]
    return state


def _hooks(module: nn.Module) -> list[tuple[int, int]]:
    return [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in module.modules()]
