"""The attention of a whole pass with its matrices written out: what the guidance branch computes without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.adapter import layer_downscale
from model.backbone import Backbone, PromptEmbedding


@dataclass
class KeepAll:
    """An `AttentionRecorder` that keeps the queries and keys of every layer and lets the pass go on."""

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
    cross: int,
    largest: int,
    **attention: Any,
) -> Tensor:
    """M = M_self M_cross (RealCustom++ Eq. 12) of a whole pass; cross, largest: downscales. Returns (B, N, S)."""
    kept = KeepAll()
    backbone.predict(latents, timestep, text, recorder=kept, **attention)
    levels = len(backbone.unet.config.block_out_channels)
    height, width = latents.shape[2:]
    selves, crosses = [], []
    for layer, pair in kept.records.items():
        downscale = layer_downscale(layer, levels)
        if layer.endswith("attn1") and downscale == largest:
            selves.append(probabilities(*pair))
        if layer.endswith("attn2") and downscale == cross:
            maps = probabilities(*pair).unflatten(1, (-(-height // cross), -(-width // cross)))
            grid = (-(-height // largest), -(-width // largest))
            crosses.append(F.interpolate(maps.permute(0, 3, 1, 2), grid, mode="bilinear").flatten(2))
    mean_self, mean_cross = torch.stack(selves).mean(0), torch.stack(crosses).mean(0)
    rows = []
    for row, subjects in enumerate(positions):
        words = torch.stack([mean_cross[row, list(places)].sum(0) for places in subjects], dim=1)
        rows.append(mean_self[row] @ words)
    return torch.stack(rows).float()


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
                place = values.index(max(values))
                selected[place, j] = scores[j][place]
                flag[place] = 1
                current[j] += 1
    return selected
