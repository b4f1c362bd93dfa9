"""Visual cross-attention beside the text cross-attention (RealCustom Eq. 4, RealCustom++ Eq. 14).

One kind of processor sits in every attention layer of the UNet while an adapter is attached. What it does is told with
each call, through diffusers' `cross_attention_kwargs`; it keeps no state, so one UNet may serve several callers:

    unet(latents, t, text)                                                         the base model, bit for bit
    unet(latents, t, text, cross_attention_kwargs={"visual": condition})           generation branch
    unet(latents, t, text, cross_attention_kwargs={"recorder": recorder})          guidance branch

Legend of shapes: B batch, H heads, d head width, N positions of the layer's grid, n keys, C = H * d.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor

AttentionKind = Literal["self", "cross"]


@dataclass(frozen=True)
class VisualCondition:
    """The subject as the UNet's cross-attention layers see it.

    It applies to the last B rows of the UNet's batch: classifier-free guidance puts unconditional rows first, and
    those carry no subject (epsilon(empty) of RealCustom++ Eq. 15).
    """

    keys_values: dict[str, tuple[Tensor, Tensor]]  # layer -> K_i, V_i, each (B, n, C)
    masks: dict[int, Tensor] | None = None  # layer's downscale -> M_hat on its grid (B, N, 1)
    scale: float = 1.0


@dataclass(frozen=True)
class AttentionRecord:
    """One layer's attention before the softmax: probabilities would take n / d times more memory."""

    kind: AttentionKind
    downscale: int  # the layer's grid is the latent's size divided by this
    query: Tensor  # (B, H, N, d)
    key: Tensor  # (B, H, n, d)


@dataclass
class AttentionRecorder:
    """Collects queries and keys of the layers that the guidance mask needs, during one call of the UNet."""

    rows: int  # the last so many rows of the UNet's batch are kept
    cross_downscales: Collection[int]
    self_downscales: Collection[int]
    records: list[AttentionRecord] = field(default_factory=list)

    def wants(self, kind: AttentionKind, downscale: int) -> bool:
        """Whether layers of this kind and grid are to be recorded."""
        return downscale in (self.cross_downscales if kind == "cross" else self.self_downscales)

    def record(self, kind: AttentionKind, downscale: int, query: Tensor, key: Tensor) -> None:
        """Keep the last `rows` rows of `query` (B, H, N, d) and `key` (B, H, n, d)."""
        self.records.append(AttentionRecord(kind, downscale, query[-self.rows :], key[-self.rows :]))


class VisualAttentionProcessor:
    """Text attention + scale * M_hat * visual attention, with the text's queries (RealCustom++ Eq. 14).

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
        visual: VisualCondition | None = None,
        recorder: AttentionRecorder | None = None,
    ) -> Tensor:
        """diffusers' processor call; `visual` and `recorder` arrive through `cross_attention_kwargs`."""
        kind: AttentionKind = "self" if encoder_hidden_states is None else "cross"
        records = recorder is not None and recorder.wants(kind, self.downscale)
        if kind == "self":
            visual = None
        if visual is None and not records:
            return self.original(
                attn,
                hidden_states,
                encoder_hidden_states=encoder_hidden_states,
                attention_mask=attention_mask,
                temb=temb,
            )

        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = _split_heads(attn.to_q(hidden_states), attn.heads)
        key = _split_heads(attn.to_k(context), attn.heads)
        value = _split_heads(attn.to_v(context), attn.heads)
        if recorder is not None and records:
            recorder.record(kind, self.downscale, query, key)
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, context.shape[1], context.shape[0])
            attention_mask = attention_mask.view(context.shape[0], attn.heads, -1, attention_mask.shape[-1])
        out = _merge_heads(F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask))
        if visual is not None:
            out = self._add_visual(out, query, visual)
        return attn.to_out[1](attn.to_out[0](out))

    def _add_visual(self, text: Tensor, query: Tensor, visual: VisualCondition) -> Tensor:
        """`text` (B, N, C) plus the visual attention, in the last rows of the batch."""
        key, value = (_split_heads(tensor.to(query.dtype), query.shape[1]) for tensor in visual.keys_values[self.layer])
        rows = key.shape[0]
        seen = _merge_heads(F.scaled_dot_product_attention(query[-rows:], key, value)) * visual.scale
        if visual.masks is not None:
            seen = seen * visual.masks[self.downscale].to(seen.dtype)
        if rows == text.shape[0]:
            return text + seen
        return torch.cat([text[:-rows], text[-rows:] + seen])


def _split_heads(tensor: Tensor, heads: int) -> Tensor:
    """(B, n, H * d) -> (B, H, n, d)."""
    return tensor.view(*tensor.shape[:2], heads, -1).transpose(1, 2)


def _merge_heads(tensor: Tensor) -> Tensor:
    """(B, H, n, d) -> (B, n, H * d)."""
    return tensor.transpose(1, 2).flatten(2)
