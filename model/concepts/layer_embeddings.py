"""XTI (P+): every cross-attention layer of the UNet reads its own states of the prompt.

The text encoder encodes a prompt once for each layer, with that layer's embeddings of the placeholder. It returns the
states of all L layers one after the other along the tokens, (B, L * n, c), so that they pass through any pipeline,
classifier-free guidance and SDXL's two encoders as longer prompts do. Each cross-attention layer takes its n tokens out
of them before its processor is called; the processors (visual attention, recorders) see n tokens as always. States of
another length, such as those of prompts that were encoded before, are left as they are.

Legend of shapes: B batch, L cross-attention layers, n tokens of a padded prompt, c width of a text encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn


def encode_for_layers(
    encoder: nn.Module, layer_ids: Sequence[Mapping[int, int]], vocabulary: int, tokens: int, end: int, undo: ExitStack
) -> None:
    """Make a text encoder return the states of all layers.

    Args:
        encoder: A text model of transformers.
        layer_ids: For each layer, the token ids that it replaces: the placeholder's -> the layer's own.
        vocabulary: The length of the table of token embeddings.
        tokens: n. diffusers pads a negative prompt to the length of the prompt's states; it is cut to n here.
        end: The id of the end token.
        undo: Gets callbacks that remove it.
    """
    # The first row leaves ids as they are: the pooled embedding is of that one.
    remap = torch.arange(vocabulary).repeat(1 + len(layer_ids), 1)
    for row, replaced in zip(remap[1:], layer_ids, strict=True):
        for old, new in replaced.items():
            row[old] = new
    copies = len(remap)

    def repeat_prompts(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        kwargs = dict(kwargs)
        ids = _cut(args[0] if args else kwargs.pop("input_ids"), tokens, end)
        if kwargs.get("attention_mask") is not None:
            kwargs["attention_mask"] = kwargs["attention_mask"][:, :tokens].repeat(copies, 1)
        return (remap.to(ids.device)[:, ids].flatten(0, 1), *args[1:]), kwargs

    def join_layers(_: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return _joined(output, copies)
        return type(output)(**{name: _joined(value, copies) for name, value in output.items()})

    undo.callback(encoder.register_forward_pre_hook(repeat_prompts, with_kwargs=True).remove)
    undo.callback(encoder.register_forward_hook(join_layers).remove)


def _cut(ids: Tensor, tokens: int, end: int) -> Tensor:
    """The first n tokens; the last of them is the end token if the prompt goes on."""
    if ids.shape[1] <= tokens:
        return ids
    ids = ids[:, :tokens].clone()
    ids[(ids != end).all(1), -1] = end
    return ids


def _joined(value: Any, copies: int) -> Any:
    """States ((1 + L) * B, n, c) -> (B, L * n, c); pooled ((1 + L) * B, c) -> (B, c) of the first copy."""
    if isinstance(value, tuple):
        return tuple(_joined(part, copies) for part in value)
    if not isinstance(value, Tensor) or value.dim() not in (2, 3):
        return None
    by_copy = value.unflatten(0, (copies, -1))
    return by_copy[0] if value.dim() == 2 else by_copy[1:].transpose(0, 1).flatten(1, 2)


def select_layers(attentions: Sequence[nn.Module], tokens: int, undo: ExitStack) -> None:
    """Make each cross-attention layer read its own states.

    Args:
        attentions: The L layers, in the order of their states.
        tokens: n.
        undo: Gets callbacks that remove it.
    """
    length = len(attentions) * tokens

    def selecting(index: int) -> Any:
        def select(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
            states = kwargs.get("encoder_hidden_states")
            text = states[0] if isinstance(states, tuple) else states  # with an IP-Adapter: text and pictures
            if text is None or text.shape[1] != length:
                return None
            own = text[:, index * tokens : (index + 1) * tokens]
            return args, kwargs | {"encoder_hidden_states": (own, *states[1:]) if isinstance(states, tuple) else own}

        return select

    for index, attention in enumerate(attentions):
        undo.callback(attention.register_forward_pre_hook(selecting(index), with_kwargs=True).remove)
