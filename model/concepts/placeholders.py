"""Placeholders in a tokenizer and their embeddings in a text encoder.

A placeholder stands for one or more vectors. The tokenizer finds it in a prompt where it is written by itself
(`model.phrases`): "sks" is not in "risks". A normalizer in front of the tokenizer's own puts one added token for each
vector in its place.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, normalizers
from torch import Tensor, nn

from model.concepts.concept import ConceptError
from model.concepts.customization_settings import placeholder_key
from model.phrases import composed, joins_words, tokenizer_pattern

#: Of letters and digits only: no normalizer changes it, and no placeholder is found within it.
_VECTOR = "realwordconceptvector{:04d}"
#: Beside the vectors of a placeholder such as "[v]", so that "[w]" is found in "[v][w]"; a character for private use,
#: which is removed again.
_EDGE = "\ue000"


def check_placeholder(tokenizer: Any, placeholder: str) -> None:
    """Check that a tokenizer can get a placeholder.

    Raises:
        ConceptError: The placeholder is a token already, or the tokenizer is a slow one.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ConceptError(
            f"the {type(tokenizer).__name__} cannot get the placeholder {placeholder!r}: a fast one can."
        )
    ids = tokenizer(composed(placeholder), add_special_tokens=False).input_ids
    if len(ids) == 1 and placeholder_key(tokenizer.decode(ids).strip()) == placeholder_key(placeholder):
        raise ConceptError(f"the placeholder {placeholder!r} is a token already; choose another.")


def add_placeholders(tokenizer: Any, vectors: dict[str, int], undo: ExitStack) -> dict[str, list[int]]:
    """Give a tokenizer placeholders; returns the ids of each one's vectors.

    Args:
        tokenizer: A fast tokenizer of transformers.
        vectors: Placeholder -> the number of its vectors.
        undo: Gets a callback that gives the tokenizer back what it has now.
    """
    original = tokenizer._tokenizer
    backend = Tokenizer.from_str(original.to_str())
    names, first = {}, 0
    for placeholder, count in vectors.items():
        names[placeholder] = [_VECTOR.format(number) for number in range(first, first + count)]
        first += count
    replacements = [
        _replacement(placeholder, names[placeholder]) for placeholder in sorted(names, key=len, reverse=True)
    ]
    own = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), *replacements, normalizers.Replace(_EDGE, ""), *own])
    backend.add_tokens([AddedToken(name, normalized=True) for listed in names.values() for name in listed])
    _use_backend(tokenizer, backend)
    undo.callback(setattr, tokenizer, "_tokenizer", original)
    return {placeholder: [backend.token_to_id(name) for name in listed] for placeholder, listed in names.items()}


def _replacement(placeholder: str, names: Sequence[str]) -> Any:
    whole = composed(placeholder)
    before, after = ("" if joins_words(end) else _EDGE for end in (whole[0], whole[-1]))
    return normalizers.Replace(Regex(tokenizer_pattern(placeholder)), f"{before}{''.join(names)}{after}")


def _use_backend(tokenizer: Any, backend: Tokenizer) -> None:
    tokenizer._tokenizer = backend
    wrap = getattr(tokenizer, "_wrap_decode_method_backend_tokenizer", None)  # CLIP's decodes without "</w>"
    if wrap is not None:
        wrap()


def set_embeddings(encoder: Any, rows: dict[int, Tensor], undo: ExitStack) -> None:
    """Give a text encoder embeddings of tokens; its table gets as long as the largest id needs.

    Args:
        encoder: A text model of transformers.
        rows: Token id -> (c).
        undo: Gets a callback that gives the encoder back the table that it has now.
    """
    table: nn.Embedding = encoder.get_input_embeddings()
    extended = copy.copy(table)  # with its hooks
    extended._parameters = dict(table._parameters)
    length = max(table.num_embeddings, max(rows) + 1)
    weight = torch.cat(
        [table.weight.detach(), table.weight.new_zeros(length - table.num_embeddings, table.embedding_dim)]
    )
    for index, row in rows.items():
        weight[index] = row.to(weight)
    extended.num_embeddings, extended.weight = length, nn.Parameter(weight, requires_grad=False)
    encoder.set_input_embeddings(extended)

    def restore() -> None:
        table.to(extended.weight.device, extended.weight.dtype)  # the encoder may have moved
        encoder.set_input_embeddings(table)

    undo.callback(restore)


def find_end_by_id(encoder: Any, tokenizer: Any, undo: ExitStack) -> None:
    """Make a CLIP text model pool at the end token, not at the largest id, which a new token would be.

    Models that were published before 2023, such as SDXL's, say that the id of their end token is 2; for them
    transformers takes the largest id of the prompt.
    """
    for module in encoder.modules():
        if getattr(module, "eos_token_id", None) == 2:
            module.eos_token_id = tokenizer.eos_token_id
            undo.callback(setattr, module, "eos_token_id", 2)
