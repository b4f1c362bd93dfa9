"""The attention of a whole pass with its matrices written out: what the guidance branch computes without them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.adapters.adapter import layer_downscale
from model.backbone import Backbone, PromptEmbedding


@dataclass
class KeepAll:
    """An `AttentionRecorder` that keeps the queries and keys of every layer and does not end the pass."""

    records: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def wants(self, layer: str) -> bool:
        return True

    def record(self, layer: str, query: Tensor, key: Tensor) -> None:
        self.records[layer] = query, key


def probabilities(query: Tensor, key: Tensor) -> Tensor:
    """Mean over heads of Softmax(Q K^T / sqrt(d)): (B, H, N, d), (B, H, n, d) -> (B, N, n)."""
    scores = (query.double() @ key.double().transpose(2, 3) / query.shape[-1] ** 0.5).exp()
    return (scores / scores.sum(-1, keepdim=True)).mean(1)


def naive_maps(
    backbone: Backbone,
    latents: Tensor,
    timestep: Tensor,
    text: PromptEmbedding,
    positions: Sequence[Sequence[Sequence[int]]],
    cross_attention: Collection[int],
    self_attention: Collection[int],
    largest: int,
    **attention: Any,
) -> Tensor:
    """M = M_self M_cross (RealCustom++ Eq. 12) of a whole pass; the layers and `largest` are downscales of the latent.

    Returns (B, N, S).
    """
    kept = KeepAll()
    backbone.predict(latents, timestep, text, recorder=kept, **attention)
    levels = len(backbone.unet.config.block_out_channels)
    layers = [(layer, layer_downscale(layer, levels), pair) for layer, pair in kept.records.items()]

    def grid(downscale: int) -> tuple[int, int]:
        return -(-latents.shape[2] // downscale), -(-latents.shape[3] // downscale)

    of_words = []
    for layer, downscale, pair in layers:
        if layer.endswith("attn2") and downscale in cross_attention:
            maps = probabilities(*pair).unflatten(1, grid(downscale)).permute(0, 3, 1, 2)
            at_largest = F.interpolate(maps, grid(largest), mode="bilinear")
            of_words.append(_of_words(at_largest, positions))
    cross = torch.stack(of_words).mean(0)
    products = []
    for layer, downscale, pair in layers:
        if layer.endswith("attn1") and downscale in self_attention:
            here = F.interpolate(cross, grid(downscale), mode="area").flatten(2)
            product = torch.stack(
                [matrix @ of_row.T for matrix, of_row in zip(probabilities(*pair), here, strict=True)]
            )
            spread = product.permute(0, 2, 1).unflatten(2, grid(downscale))
            products.append(F.interpolate(spread, grid(largest), mode="bilinear"))
    maps = torch.stack(products).mean(0) if self_attention else cross
    return maps.flatten(2).transpose(1, 2).float()


def _of_words(maps: Tensor, positions: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Maps of all tokens (B, n_t, G, G') -> of each subject's word, its tokens' sum (B, S, G, G')."""
    return torch.stack(
        [
            torch.stack([of_row[list(positions_of_word)].sum(0) for positions_of_word in words])
            for of_row, words in zip(maps, positions, strict=True)
        ]
    )


def printed_loop(maps: Tensor, counts: list[int]) -> Tensor:
    """RealCustom++ Algorithm 1 as printed: M (N, S) of one picture, gamma_num -> M_bar (N, S)."""
    scores = [maps[:, j].clone() for j in range(len(counts))]
    current = [0 for _ in counts]
    selected = torch.zeros_like(maps)
    flag = torch.zeros(len(maps))
    while sum(have < want for have, want in zip(current, counts, strict=True)):
        for j, want in enumerate(counts):
            if current[j] < want:
                scores[j][flag == 1] = -torch.inf
                values = scores[j].tolist()
                position = values.index(max(values))
                selected[position, j] = scores[j][position]
                flag[position] = 1
                current[j] += 1
    return selected
