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

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from model.concepts.concept import Concept, ConceptError, ConceptToken
from model.concepts.folder import read_concept
from model.concepts.layer_embeddings import encode_for_layers, select_layers
from model.concepts.lora import add_lora, fits
from model.concepts.model_parts import ModelParts
from model.concepts.placeholders import add_placeholders, check_placeholder, find_end_by_id, set_embeddings


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
        if placeholder.casefold() in seen:
            raise ConceptError(f"two concepts have the placeholder {placeholder!r}: load one of them at a time.")
        seen.add(placeholder.casefold())


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
            raise ConceptError(f"{name} cannot be loaded into offloaded weights: load it before the offloading.")
    for layer, lora in concept.lora.items():
        if layer not in layers or not fits(layers[layer], lora):
            raise _other(name, f"the model has no layer {layer} of its shape")


def _check_token(parts: ModelParts, token: ConceptToken, attentions: list[str], name: str) -> None:
    if token.layer_embeddings and sorted(token.layer_embeddings) != sorted(attentions):
        count = len(token.layer_embeddings)
        raise _other(name, f"it has embeddings for {count} cross-attention layers, the UNet has {len(attentions)}")
    widths = [embedding.shape[-1] for embedding in token.all_embeddings]
    if token.all_embeddings and widths != parts.widths:
        raise _other(name, f"its embeddings have the widths {widths}, the text encoders {parts.widths}")
    if widths:
        if any(encoder.get_input_embeddings().weight.is_meta for encoder in parts.text_encoders):
            raise ConceptError(f"{name} cannot be loaded into offloaded weights: load it before the offloading.")
        for tokenizer in parts.tokenizers:
            check_placeholder(tokenizer, token.placeholder)


def _other(name: str, reason: str) -> ConceptError:
    return ConceptError(f"{name} was learned on another backbone than this one: {reason}.")


def _put_in(parts: ModelParts, concepts: Sequence[Concept], undo: ExitStack) -> None:
    tokens = [token for concept in concepts for token in concept.tokens if token.all_embeddings]
    if tokens:
        _put_in_tokens(parts, tokens, undo)
    for layer, projections in parts.keys_values().items():
        pairs = [concept.cross_attention[layer] for concept in concepts if layer in concept.cross_attention]
        for projection, weights in zip(projections, zip(*pairs, strict=True), strict=False):
            _exchange_weight(projection, weights, undo)
    layers = parts.layers()
    for concept in concepts:
        for layer, lora in concept.lora.items():
            add_lora(layers[layer], lora, undo)


def _put_in_tokens(parts: ModelParts, tokens: Sequence[ConceptToken], undo: ExitStack) -> None:
    attentions = parts.cross_attention()
    with_layers = any(token.layer_embeddings for token in tokens)
    length = min(parts.tokenizers[0].model_max_length, parts.text_encoders[0].config.max_position_embeddings)
    counts = {token.placeholder: len(token.all_embeddings[0]) for token in tokens}
    ids_of: dict[int, dict[str, list[int]]] = {}  # a tokenizer may serve both encoders
    for number, (tokenizer, encoder) in enumerate(zip(parts.tokenizers, parts.text_encoders, strict=True)):
        if id(tokenizer) not in ids_of:
            ids_of[id(tokenizer)] = add_placeholders(tokenizer, counts, undo)
        ids = ids_of[id(tokenizer)]
        rows = {
            index: row
            for token in tokens
            for index, row in zip(ids[token.placeholder], token.all_embeddings[number], strict=True)
        }
        find_end_by_id(encoder, tokenizer, undo)
        replaced = _layer_rows(tokens, number, ids, list(attentions), rows, encoder) if with_layers else []
        set_embeddings(encoder, rows, undo)
        if with_layers:
            rows_in_table = encoder.get_input_embeddings().num_embeddings
            encode_for_layers(encoder, replaced, rows_in_table, length, tokenizer.eos_token_id, undo)
    if with_layers:
        select_layers(list(attentions.values()), length, undo)


def _layer_rows(
    tokens: Sequence[ConceptToken],
    number: int,
    ids: Mapping[str, list[int]],
    attentions: Sequence[str],
    rows: dict[int, Tensor],
    encoder: Any,
) -> list[dict[int, int]]:
    """Add the rows of each layer to `rows`; returns for each layer the ids that it replaces."""
    free = max(encoder.get_input_embeddings().num_embeddings, max(rows) + 1)
    replaced: list[dict[int, int]] = []
    for layer in attentions:
        own: dict[int, int] = {}
        for token in (token for token in tokens if token.layer_embeddings):
            for index, row in zip(ids[token.placeholder], token.layer_embeddings[layer][number], strict=True):
                own[index], rows[free] = free, row
                free += 1
        replaced.append(own)
    return replaced


def _exchange_weight(projection: nn.Linear, weights: Sequence[Tensor], undo: ExitStack) -> None:
    """Put one concept's weight into a layer; of several the weight with the sum of their changes."""
    original = projection.weight
    if len(weights) == 1:
        changed = weights[0].to(original)
    else:
        start = original.detach().float()
        changed = (start + sum(weight.to(start) - start for weight in weights)).to(original)
    projection.weight = nn.Parameter(changed.detach().clone(), requires_grad=False)

    def restore() -> None:
        original.data = original.data.to(projection.weight)  # the model may have moved
        projection.weight = original

    undo.callback(restore)


def _forget_compiled(parts: ModelParts) -> None:
    """Make compiled models compile again: their graphs do not see new hooks."""
    models = (parts.unet, *parts.text_encoders)
    if any(module._compiled_call_impl is not None for model in models for module in model.modules()) or any(
        hasattr(model, "_orig_mod") for model in models
    ):
        torch.compiler.reset()
