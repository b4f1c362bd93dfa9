"""Visual cross-attention beside the text cross-attention (RealCustom Eq. 4, RealCustom++ Eq. 14).

One kind of processor sits in every attention layer of the UNet while an adapter is attached. What it does is told with
each call, through diffusers' `cross_attention_kwargs`; it keeps no state, so one UNet may serve several callers:

    unet(latents, t, text)                                                         the base model, bit for bit
    unet(latents, t, text, cross_attention_kwargs={"visual": condition})           generation branch; several: a list
    unet(latents, t, text, cross_attention_kwargs={"recorder": recorder})          guidance branch

`torch.compile` takes each of the three as one graph.

Legend of shapes: B batch, H heads, d head width, N positions of the layer's grid, k of them with a subject, n keys,
C = H * d.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor


@dataclass(frozen=True)
class Region:
    """Where a mask M_hat is not zero on a layer's grid: the visual attention is computed at these k positions only."""

    positions: Tensor  # (B, k) of the layer's N; a row with fewer than k is filled up with positions of weight 0
    weights: Tensor  # (B, k, 1), M_hat there


@dataclass(frozen=True)
class VisualCondition:
    """A reference as the UNet's cross-attention layers see it.

    It applies to the last B rows of the UNet's batch: classifier-free guidance puts unconditional rows first, and
    those carry no subject (epsilon(empty) of RealCustom++ Eq. 15).
    """

    keys_values: dict[str, tuple[Tensor, Tensor]]  # layer -> K_i, V_i, each (B, n, C)
    regions: dict[int, Region] | None = None  # layer's downscale -> M_hat on its grid; None: the whole picture
    scale: float | Tensor = 1.0  # strength, one for all or (B, 1, 1)


class AttentionRecorder(Protocol):
    """Is shown the queries and keys of the layers that it wants, before their softmax."""

    def wants(self, layer: str) -> bool:
        """Whether the layer of this name is to be recorded."""

    def record(self, layer: str, query: Tensor, key: Tensor) -> None:
        """`query` (B, H, N, d) and `key` (B, H, n, d). What it raises ends the UNet's pass."""


class VisualAttentionProcessor:
    """Text attention + sum of scale * M_hat * visual attention, with the text's queries (RealCustom++ Eqs. 14, 17).

    Not an nn.Module: the adapter owns the weights, the base UNet's state dict stays as it was.

    Args:
        layer: name of the attention layer in the UNet, e.g. `down_blocks.0.attentions.0.transformer_blocks.0.attn2`.
        downscale: the layer's grid is the latent's size divided by this.
        original: the processor that was there before; it computes whatever asks for neither a subject nor a record.
    """

    def __init__(self, layer: str, downscale: int, original: Any) -> None:
        self.layer = layer
        self.downscale = downscale
        self.original = original

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        visual: VisualCondition | Sequence[VisualCondition] | None = None,
        recorder: AttentionRecorder | None = None,
    ) -> Tensor:
        """diffusers' processor call; `visual` and `recorder` arrive through `cross_attention_kwargs`."""
        if recorder is not None and not recorder.wants(self.layer):
            recorder = None
        if encoder_hidden_states is None:
            visual = None
        if visual is None and recorder is None:
            return self.original(
                attn,
                hidden_states,
                encoder_hidden_states=encoder_hidden_states,
                attention_mask=attention_mask,
                temb=temb,
            )

        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        queries = attn.to_q(hidden_states)
        query = _split_heads(queries, attn.heads)
        key = _split_heads(attn.to_k(context), attn.heads)
        if recorder is not None:
            recorder.record(self.layer, query, key)
        value = _split_heads(attn.to_v(context), attn.heads)
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, context.shape[1], context.shape[0])
            attention_mask = attention_mask.view(context.shape[0], attn.heads, -1, attention_mask.shape[-1])
        out = _merge_heads(F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask))
        for condition in [visual] if isinstance(visual, VisualCondition) else visual or ():
            out = self._add_visual(out, queries, condition, attn.heads)
        return attn.to_out[1](attn.to_out[0](out))

    def _add_visual(self, text: Tensor, queries: Tensor, visual: VisualCondition, heads: int) -> Tensor:
        """`text` (rows, N, C) plus the visual attention of `queries` (rows, N, C), in the last B rows."""
        keys, values = visual.keys_values[self.layer]
        rows, positions, width = queries.shape
        batch = keys.shape[0]
        key, value = (_split_heads(tensor.to(queries.dtype), heads) for tensor in (keys, values))
        if visual.regions is None:
            query = _split_heads(queries[-batch:], heads)
            seen = _merge_heads(F.scaled_dot_product_attention(query, key, value))
            return torch.cat([text[:-batch], text[-batch:] + (seen * visual.scale).to(text.dtype)])
        region = visual.regions[self.downscale]
        # Whole positions are read and added to as rows of one table: much faster than gather and scatter.
        first = torch.arange(rows - batch, rows, device=queries.device)[:, None] * positions
        places = (region.positions + first).flatten()
        query = _split_heads(queries.reshape(-1, width).index_select(0, places).view(batch, -1, width), heads)
        seen = _merge_heads(F.scaled_dot_product_attention(query, key, value))
        seen = (seen * (region.weights * visual.scale)).to(text.dtype)
        return text.reshape(-1, width).index_add(0, places, seen.view(-1, width)).view_as(text)


def _split_heads(tensor: Tensor, heads: int) -> Tensor:
    """(B, n, H * d) -> (B, H, n, d)."""
    return tensor.view(*tensor.shape[:2], heads, -1).transpose(1, 2)


def _merge_heads(tensor: Tensor) -> Tensor:
    """(B, H, n, d) -> (B, n, H * d)."""
    return tensor.transpose(1, 2).flatten(2)
