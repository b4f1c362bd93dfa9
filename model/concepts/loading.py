"""Learned concepts in a model, and off again without a trace.

    load_concept(pipeline, "concepts/mug")
    pipeline("a [v] mug in the snow")
    unload_concepts(pipeline)

`pipeline` is a diffusers Stable Diffusion (XL) pipeline, a `RealCustomPipeline` or a `Backbone`. What is loaded belongs
to the models themselves: pipelines that share a UNet, text encoders and tokenizers share their concepts. No weight
changes: token tables and weights of Custom Diffusion are exchanged, everything else works by hooks, and unloading puts
the models' own parts back. Custom Diffusion's changes of the weights are added when several concepts have some.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from model.concepts.concept import Concept, ConceptError, ConceptToken
from model.concepts.customization_settings import placeholder_key
from model.concepts.folder import read_concept
from model.concepts.lora import add_lora, fits
from model.concepts.model_parts import ModelParts
from model.concepts.placeholders import check_placeholder
from model.concepts.token_rows import put_in_tokens


@dataclass
class _Loaded:
    """The concepts in a model."""

    concepts: list[Concept] = field(default_factory=list)
    undo: ExitStack = field(default_factory=ExitStack)


_LOADED: WeakKeyDictionary[nn.Module, _Loaded] = WeakKeyDictionary()  # by UNet


def load_concept(model: Any, *concepts: Concept | str | Path) -> list[str]:
    """Load concepts beside those that are loaded; all of them or, after an error, none.

    Args:
        model: A diffusers Stable Diffusion (XL) pipeline, a `RealCustomPipeline` or a `Backbone`.
        concepts: Folders that `write_concept` wrote, or concepts.

    Returns:
        Their placeholders.

    Raises:
        ConceptError: A folder has no concept or a damaged one, a concept is of another backbone, or its placeholder is
            a token already or that of another concept.
    """
    parts = ModelParts.of(model)
    loaded = _LOADED.get(parts.unet, _Loaded())
    names = [f"the concept {c.placeholders[0]!r}" if isinstance(c, Concept) else f"the concept {c}" for c in concepts]
    new = [c if isinstance(c, Concept) else read_concept(Path(c)) for c in concepts]
    _check_names([*loaded.concepts, *new])
    with _without_concepts(loaded, parts):
        for name, concept in zip(names, new, strict=True):
            check_concept(parts, concept, name)
        _LOADED[parts.unet] = loaded
        loaded.concepts = [*loaded.concepts, *new]
    return [placeholder for concept in new for placeholder in concept.placeholders]


def unload_concepts(model: Any, *placeholders: str) -> None:
    """Unload the concepts with these placeholders, or all; each with the others of its folder.

    Raises:
        ConceptError: There is no such concept.
    """
    parts = ModelParts.of(model)
    loaded = _LOADED.get(parts.unet, _Loaded())
    for placeholder in placeholders:
        if placeholder not in loaded_placeholders(model):
            raise ConceptError(f"no concept with the placeholder {placeholder!r} is loaded.")
    with _without_concepts(loaded, parts):
        kept = [c for c in loaded.concepts if placeholders and not set(placeholders) & set(c.placeholders)]
        loaded.concepts = kept


def loaded_placeholders(model: Any) -> list[str]:
    """The placeholders of all loaded concepts."""
    loaded = _LOADED.get(ModelParts.of(model).unet, _Loaded())
    return [placeholder for concept in loaded.concepts for placeholder in concept.placeholders]


@contextmanager
def _without_concepts(loaded: _Loaded, parts: ModelParts) -> Iterator[None]:
    """The block sees the model without its concepts; after it, `loaded.concepts` are put into the model."""
    loaded.undo.close()
    try:
        yield
    finally:
        with ExitStack() as undo:
            if loaded.concepts:
                _put_in(parts, loaded.concepts, undo)
            loaded.undo = undo.pop_all()
        _forget_compiled(parts)


def _check_names(concepts: Sequence[Concept]) -> None:
    seen: set[str] = set()
    for placeholder in (placeholder for concept in concepts for placeholder in concept.placeholders):
        if placeholder_key(placeholder) in seen:
            raise ConceptError(f"two concepts have the placeholder {placeholder!r}: load one of them at a time.")
        seen.add(placeholder_key(placeholder))


def check_concept(parts: ModelParts, concept: Concept, name: str) -> None:
    """Check that a concept fits a model.

    Raises:
        ConceptError: It was learned on another backbone, a placeholder cannot be added, or the model's weights are not
            there (on the device "meta").
    """
    keys_values, layers = parts.keys_values(), parts.layers()
    for token in concept.tokens:
        _check_token(parts, token, list(keys_values), name)
    for layer, weights in concept.cross_attention.items():
        shapes = [projection.weight.shape for projection in keys_values.get(layer, ())]
        if [weight.shape for weight in weights] != shapes:
            raise _other(name, f"the UNet has no cross-attention layer {layer} of its shape")
        if any(projection.weight.is_meta for projection in keys_values[layer]):
            raise _offloaded(name)
    for layer, lora in concept.lora.items():
        if layer not in layers or not fits(layers[layer], lora):
            raise _other(name, f"the model has no layer {layer} of its shape")
    parameters = parts.parameters() if concept.weights else {}
    for parameter, weight in concept.weights.items():
        module, own = parameters.get(parameter, (None, ""))
        current = getattr(module, own, None)
        if current is None or current.shape != weight.shape:
            raise _other(name, f"the model has no parameter {parameter} of its shape")
        if current.is_meta:
            raise _offloaded(name)


def _check_token(parts: ModelParts, token: ConceptToken, attentions: list[str], name: str) -> None:
    if token.layer_embeddings and sorted(token.layer_embeddings) != sorted(attentions):
        count = len(token.layer_embeddings)
        raise _other(name, f"it has embeddings for {count} cross-attention layers, the UNet has {len(attentions)}")
    widths = [embedding.shape[-1] for embedding in token.all_embeddings]
    if token.all_embeddings and widths != parts.widths:
        raise _other(name, f"its embeddings have the widths {widths}, the text encoders {parts.widths}")
    if widths:
        if any(encoder.get_input_embeddings().weight.is_meta for encoder in parts.text_encoders):
            raise _offloaded(name)
        for tokenizer in parts.tokenizers:
            check_placeholder(tokenizer, token.placeholder)


def _offloaded(name: str) -> ConceptError:
    return ConceptError(f"{name} cannot be loaded into offloaded weights: load it before the offloading.")


def _other(name: str, reason: str) -> ConceptError:
    return ConceptError(f"{name} was learned on another backbone than this one: {reason}.")


def _put_in(parts: ModelParts, concepts: Sequence[Concept], undo: ExitStack) -> None:
    # Tables of tokens are made from the exchanged ones.
    changed = [_exchanged(concept) for concept in concepts]
    for name, place in parts.parameters().items() if any(changed) else ():
        weights = [own[name] for own in changed if name in own]
        if weights:
            _exchange_weight(*place, weights, undo)
    tokens = [token for concept in concepts for token in concept.tokens if token.all_embeddings]
    if tokens:
        put_in_tokens(parts, tokens, undo)
    layers = parts.layers()
    for concept in concepts:
        for layer, lora in concept.lora.items():
            add_lora(layers[layer], lora, undo)


def _exchanged(concept: Concept) -> dict[str, Tensor]:
    """The parameters that a concept has new values for."""
    pairs = concept.cross_attention.items()
    keys_values = {
        f"unet.{layer}.{to}.weight": w for layer, pair in pairs for to, w in zip(("to_k", "to_v"), pair, strict=True)
    }
    return {**concept.weights, **keys_values}


def _exchange_weight(module: nn.Module, name: str, weights: Sequence[Tensor], undo: ExitStack) -> None:
    """Put one concept's weight into a module; of several the weight with the sum of their changes."""
    original: nn.Parameter = getattr(module, name)
    if len(weights) == 1:
        changed = weights[0].to(original)
    else:
        start = original.detach().float()
        changed = (start + sum(weight.to(start) - start for weight in weights)).to(original)
    setattr(module, name, nn.Parameter(changed.detach().clone(), requires_grad=False))

    def restore() -> None:
        original.data = original.data.to(getattr(module, name))  # the model may have moved
        setattr(module, name, original)

    undo.callback(restore)


def _forget_compiled(parts: ModelParts) -> None:
    """Make compiled models compile again: their graphs do not see new hooks."""
    models = (parts.unet, *parts.text_encoders)
    if any(module._compiled_call_impl is not None for model in models for module in model.modules()) or any(
        hasattr(model, "_orig_mod") for model in models
    ):
        torch.compiler.reset()
