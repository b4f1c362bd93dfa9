"""Visual cross-attention beside the text cross-attention (RealCustom Eq. 4, RealCustom++ Eq. 14).

Attaching an adapter puts a `VisualAttentionProcessor` into every attention layer of the UNet. The processor is
stateless: each call passes its inputs through diffusers' `cross_attention_kwargs`, so one UNet can serve several
callers:

    unet(latents, t, text)                                                  the base model, bit for bit
    unet(latents, t, text, cross_attention_kwargs={"visual": condition})    generation branch; also a list of conditions
    unet(latents, t, text, cross_attention_kwargs={"recorder": recorder})   guidance branch
    unet(latents, t, text, cross_attention_kwargs={"integration": module})  DCI's two branches (`model.dci`)

`torch.compile` compiles each of them to one graph.

Legend of shapes: B batch, H heads, d head width, N positions of the layer's grid, k of them with a subject, n keys,
C = H * d.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

KeysValues = dict[str, tuple[Tensor, Tensor]]  # layer -> K_i, V_i, each (B, n, C)


@dataclass(frozen=True)
class Region:
    """The k positions where a mask M_hat is not zero on a layer's grid; visual attention is computed only there."""

    positions: Tensor  # (B, k) of the layer's N; a row with fewer than k is padded with positions of weight 0
    weights: Tensor  # (B, k, 1), M_hat at the positions

    @staticmethod
    def cat(regions: Sequence["Region"]) -> "Region":
        """Batches one after the other."""
        most = max(region.positions.shape[1] for region in regions)
        missing = [most - region.positions.shape[1] for region in regions]
        pairs = list(zip(regions, missing, strict=True))
        return Region(
            torch.cat([F.pad(region.positions, (0, count)) for region, count in pairs]),
            torch.cat([F.pad(region.weights, (0, 0, 0, count)) for region, count in pairs]),
        )

    def empty(self) -> "Region":
        """A region of the same rows that has no position."""
        return Region(self.positions[:, :1], torch.zeros_like(self.weights[:, :1]))


@dataclass(frozen=True)
class VisualCondition:
    """The visual condition of one reference for the UNet's cross-attention layers.

    It applies to the last B rows of the UNet's batch: classifier-free guidance puts the unconditional rows first, and
    they have no subject (epsilon(empty) of RealCustom++ Eq. 15), or `unconditional` in its place, in the same regions
    and as strong.
    """

    keys_values: KeysValues
    regions: dict[int, Region] | None = None  # layer's downscale -> M_hat on its grid; None: the whole picture
    scale: float | Tensor = 1.0  # strength: a number, or (B, 1, 1)
    unconditional: KeysValues | None = None  # (1, n, C), of the B rows before; None: they have no subject

    def of_layer(self, layer: str, downscale: int) -> tuple[Tensor, Tensor, Region | None, float | Tensor]:
        """Keys, values, region and scale of the batch's last rows: B, or 2 B with the unconditional ones."""
        key, value = self.keys_values[layer]
        region = None if self.regions is None else self.regions[downscale]
        if self.unconditional is None:
            return key, value, region, self.scale
        black_key, black_value = self.unconditional[layer]
        scale = torch.cat([self.scale, self.scale]) if isinstance(self.scale, Tensor) else self.scale
        return (
            torch.cat([black_key.expand_as(key), key]),
            torch.cat([black_value.expand_as(value), value]),
            None if region is None else Region.cat([region, region]),
            scale,
        )

    def repeat_interleave(self, times: int) -> "VisualCondition":
        """Each reference for `times` rows in a row: the condition of B * times rows. For whole pictures at scale 1."""
        if times == 1:
            return self
        repeated = {
            layer: (key.repeat_interleave(times, dim=0), value.repeat_interleave(times, dim=0))
            for layer, (key, value) in self.keys_values.items()
        }
        return VisualCondition(repeated)

    @staticmethod
    def cat(conditions: Sequence["VisualCondition"]) -> "VisualCondition":
        """Batches one after the other: all of them with regions, or all without and with strengths for each row."""
        pairs = {
            layer: tuple(torch.cat([one.keys_values[layer][side] for one in conditions]) for side in (0, 1))
            for layer in conditions[0].keys_values
        }
        keys_values = {layer: (key, value) for layer, (key, value) in pairs.items()}
        regions = [one.regions for one in conditions if one.regions is not None]
        together = replace(conditions[0], keys_values=keys_values)
        if not regions:
            return replace(together, scale=torch.cat([torch.as_tensor(one.scale) for one in conditions]))
        return replace(
            together,
            regions={downscale: Region.cat([of_one[downscale] for of_one in regions]) for downscale in regions[0]},
        )

    def nowhere(self) -> "VisualCondition":
        """The same reference without effect; it fills a row that has fewer references than others of its batch."""
        if self.regions is None:
            return replace(self, scale=self.scale * 0)
        return replace(self, regions={downscale: region.empty() for downscale, region in self.regions.items()})


class AttentionRecorder(Protocol):
    """Receives the queries and keys of attention layers, before their softmax."""

    def wants(self, layer: str) -> bool:
        """Whether to record the layer of this name."""

    def record(self, layer: str, query: Tensor, key: Tensor) -> None:
        """`query` (B, H, N, d) and `key` (B, H, n, d). An exception ends the UNet's pass."""


class TextIntegration(Protocol):
    """Combines the text attention of several rows of the UNet's batch."""

    def wants(self, layer: str) -> bool:
        """Whether to change the cross-attention layer of this name."""

    def integrate(self, layer: str, query: Tensor, key: Tensor, mask: Tensor | None, attended: Tensor) -> Tensor:
        """`attended` = Softmax(Q K^T / sqrt(d) + mask) V (B, H, N, d) -> what takes its place, of the same shape.

        `query` is (B, H, N, d), `key` (B, H, n, d), `mask` None or broadcasts to (B, H, N, n).
        """


class VisualAttentionProcessor:
    """Text attention + sum of scale * M_hat * visual attention, with the text's queries (RealCustom++ Eqs. 14, 17).

    It is no nn.Module: the adapter owns the weights, and the base UNet's state dict stays unchanged.

    Args:
        layer: name of the attention layer in the UNet, e.g. `down_blocks.0.attentions.0.transformer_blocks.0.attn2`.
        downscale: the latent's size divided by the size of the layer's grid.
        original: the layer's own processor; it computes all calls without `visual`, `recorder` and `integration`.
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
        integration: TextIntegration | None = None,
    ) -> Tensor:
        """The call of diffusers' processors; the last three come through `cross_attention_kwargs`."""
        if recorder is not None and not recorder.wants(self.layer):
            recorder = None
        if integration is not None and not integration.wants(self.layer):
            integration = None
        if encoder_hidden_states is None:
            visual = integration = None
        if visual is None and recorder is None and integration is None:
            rest = {} if temb is None else {"temb": temb}  # sliced attention takes none
            return self.original(
                attn, hidden_states, encoder_hidden_states=encoder_hidden_states, attention_mask=attention_mask, **rest
            )
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        queries = attn.to_q(hidden_states)
        query, key = _split_heads(queries, attn.heads), _split_heads(attn.to_k(context), attn.heads)
        if recorder is not None:
            recorder.record(self.layer, query, key)
        value, mask = _split_heads(attn.to_v(context), attn.heads), _attention_mask(attn, attention_mask, context)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        if integration is not None:
            attended = integration.integrate(self.layer, query, key, mask, attended)
        out = _merge_heads(attended)
        for condition in [visual] if isinstance(visual, VisualCondition) else visual or ():
            out = self._add_visual(out, queries, condition, attn.heads)
        return attn.to_out[1](attn.to_out[0](out))

    def _add_visual(self, text: Tensor, queries: Tensor, visual: VisualCondition, heads: int) -> Tensor:
        """`text` (rows, N, C) plus the visual attention of `queries` (rows, N, C), in the last rows."""
        keys, values, region, scale = visual.of_layer(self.layer, self.downscale)
        rows, positions, width = queries.shape
        batch = keys.shape[0]
        key, value = (_split_heads(tensor.to(queries.dtype), heads) for tensor in (keys, values))
        if region is None:
            query = _split_heads(queries[-batch:], heads)
            attended = _merge_heads(F.scaled_dot_product_attention(query, key, value))
            return torch.cat([text[:-batch], text[-batch:] + (attended * scale).to(text.dtype)])
        # Indexing positions as rows of one (rows * N, C) table is much faster than gather and scatter.
        first = torch.arange(rows - batch, rows, device=queries.device)[:, None] * positions
        indices = (region.positions + first).flatten()
        query = _split_heads(queries.reshape(-1, width).index_select(0, indices).view(batch, -1, width), heads)
        attended = _merge_heads(F.scaled_dot_product_attention(query, key, value))
        attended = (attended * (region.weights * scale)).to(text.dtype)
        return text.reshape(-1, width).index_add(0, indices, attended.view(-1, width)).view_as(text)


def attached_processors(unet: UNet2DConditionModel) -> list[VisualAttentionProcessor]:
    """The processors of a UNet that has an adapter attached; empty otherwise."""
    processors = unet.attn_processors.values()
    return [processor for processor in processors if isinstance(processor, VisualAttentionProcessor)]


def _attention_mask(attn: Attention, mask: Tensor | None, context: Tensor) -> Tensor | None:
    """diffusers' mask for the keys of `context` (B, n, c), with a dimension for the heads."""
    if mask is None:
        return None
    prepared = attn.prepare_attention_mask(mask, context.shape[1], context.shape[0])
    return prepared.view(context.shape[0], attn.heads, -1, prepared.shape[-1])


def _split_heads(tensor: Tensor, heads: int) -> Tensor:
    """(B, n, H * d) -> (B, H, n, d)."""
    return tensor.view(*tensor.shape[:2], heads, -1).transpose(1, 2)


def _merge_heads(tensor: Tensor) -> Tensor:
    """(B, H, n, d) -> (B, n, H * d)."""
    return tensor.transpose(1, 2).flatten(2)
