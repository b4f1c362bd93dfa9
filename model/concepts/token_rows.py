"""Placeholders with their vectors in a model: the tokenizers find them, the text encoders have rows for them.

Tokens of XTI need rows for each cross-attention layer; see `model.concepts.layer_embeddings`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from model.concepts.concept import ConceptToken
from model.concepts.layer_embeddings import encode_for_layers, select_layers
from model.concepts.model_parts import ModelParts
from model.concepts.placeholders import add_placeholders, find_end_by_id, set_embeddings


def token_rows(tokens: Sequence[ConceptToken], encoder: int, layers: Sequence[str]) -> Tensor:
    """The rows (r, c) that tokens need in a text encoder's table: all tokens', then for each layer those of XTI.

    Args:
        tokens: With vectors; r rows in all.
        encoder: Number of the text encoder.
        layers: The UNet's cross-attention layers.
    """
    with_layers = [token for token in tokens if token.layer_embeddings]
    plain = [token.all_embeddings[encoder] for token in tokens]
    of_layers = [token.layer_embeddings[layer][encoder] for layer in layers for token in with_layers]
    return torch.cat([*plain, *of_layers])


def put_in_tokens(parts: ModelParts, tokens: Sequence[ConceptToken], undo: ExitStack) -> list[list[int]]:
    """Put tokens with vectors into a model; returns the ids of `token_rows` for each text encoder.

    Args:
        parts: Of the model.
        tokens: At least one.
        undo: Gets callbacks that take them out again.
    """
    attentions = parts.cross_attention()
    layers = list(attentions)
    with_layers = any(token.layer_embeddings for token in tokens)
    length = min(parts.tokenizers[0].model_max_length, parts.text_encoders[0].config.max_position_embeddings)
    counts = {token.placeholder: len(token.all_embeddings[0]) for token in tokens}
    ids_of: dict[int, dict[str, list[int]]] = {}  # a tokenizer may serve both encoders
    row_ids: list[list[int]] = []
    for number, (tokenizer, encoder) in enumerate(zip(parts.tokenizers, parts.text_encoders, strict=True)):
        if id(tokenizer) not in ids_of:
            ids_of[id(tokenizer)] = add_placeholders(tokenizer, counts, undo)
        ids = ids_of[id(tokenizer)]
        plain = [index for token in tokens for index in ids[token.placeholder]]
        first_free = max(encoder.get_input_embeddings().num_embeddings, max(plain) + 1)
        replaced = _layer_ids(tokens, ids, len(layers), first_free)
        row_ids.append([*plain, *(new for layer in replaced for new in layer.values())])
        find_end_by_id(encoder, tokenizer, undo)
        set_embeddings(encoder, dict(zip(row_ids[-1], token_rows(tokens, number, layers), strict=True)), undo)
        if with_layers:
            rows_in_table = encoder.get_input_embeddings().num_embeddings
            encode_for_layers(encoder, replaced, rows_in_table, length, tokenizer.eos_token_id, undo)
    if with_layers:
        select_layers(list(attentions.values()), length, undo)
    return row_ids


def _layer_ids(
    tokens: Sequence[ConceptToken], ids: Mapping[str, Sequence[int]], layers: int, first: int
) -> list[dict[int, int]]:
    """For each layer, the ids that it replaces -> its own, which begin at `first`."""
    placeholders = [index for token in tokens if token.layer_embeddings for index in ids[token.placeholder]]
    count = len(placeholders)
    return [
        {index: first + layer * count + number for number, index in enumerate(placeholders)} for layer in range(layers)
    ]
