"""Attention processors that record their probabilities: the cross-attention map of a word, for measurements."""

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor


def _heads(attention: Attention, states: Tensor) -> Tensor:
    """(B, L, C) -> (B, heads, L, C / heads)."""
    return states.reshape(*states.shape[:2], attention.heads, -1).transpose(1, 2)


@dataclass
class AttentionRecord:
    """Attention probabilities of one forward pass, averaged over heads: (B, queries, keys) per layer."""

    cross: dict[str, Tensor] = field(default_factory=dict)
    self_attention: dict[str, Tensor] = field(default_factory=dict)

    def cross_map(self, position: Tensor, resolution: int) -> Tensor:
        """Mean map (B, r, r) of the token at `position` (B,) over the layers of that resolution."""
        layers = [p for p in self.cross.values() if p.shape[1] == resolution**2]
        mean = torch.stack(layers).mean(0)
        token = mean[torch.arange(len(mean)), :, position]
        return token.view(-1, resolution, resolution)

    def spread(self, cross_map: Tensor) -> Tensor:
        """Propagate a map (B, r, r) once through the mean self-attention of its resolution."""
        size = cross_map.shape[-1]
        layers = [p for p in self.self_attention.values() if p.shape[1] == size**2]
        return (torch.stack(layers).mean(0) @ cross_map.flatten(1)[..., None]).view_as(cross_map)


@dataclass
class RecordingAttention:
    """Plain attention that records its probabilities."""

    name: str
    record: AttentionRecord

    def __call__(
        self, attention: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        """Self-attention of (B, L, C) states or cross-attention over the text, recorded."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = _heads(attention, attention.to_q(hidden_states))
        key, value = _heads(attention, attention.to_k(context)), _heads(attention, attention.to_v(context))
        probabilities = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).float().softmax(-1)
        kept = self.record.self_attention if encoder_hidden_states is None else self.record.cross
        kept[self.name] = probabilities.mean(1)
        mixed = probabilities.to(value.dtype) @ value
        out: Tensor = attention.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out


def use_default_attention(unet: UNet2DConditionModel) -> None:
    """Install diffusers' own processor."""
    unet.set_attn_processor(AttnProcessor2_0())


def record_attention(unet: UNet2DConditionModel) -> AttentionRecord:
    """Install recording processors; every forward pass overwrites the record."""
    record = AttentionRecord()
    unet.set_attn_processor({name: RecordingAttention(name, record) for name in unet.attn_processors})
    return record
