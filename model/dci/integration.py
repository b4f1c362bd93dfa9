"""The Dual-Branch Integration Module, DBIM (Customized Generation Reimagined, Eqs. 3-5).

In a cross-attention layer the concept branch gets part of its output from the auxiliary branch: each position by the
attention that the two branches pay there to their own content, each head by itself. The paper prints the attention
without the softmax over the tokens, by mistake.

As printed, Eq. 4 makes masks that are nearly flat: a spatial softmax of values in [0, 1] is about 1 / N everywhere, and
the softmax over the branches about one half. The authors' code scales the values before each softmax. Both are here as
`MaskScales`.

Legend of shapes: B pictures, H heads, d head width, N positions of the layer's grid, n text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.dci.settings import Scales


@dataclass(frozen=True)
class MaskScales:
    """What the values are multiplied by before the softmaxes of Eqs. 3 and 4."""

    tokens: float | None  # probabilities, before a second softmax over the prompt's own tokens; None: no second softmax
    positions: float  # M, before the spatial softmax S_s
    branches: float  # S_s(M), before the softmax S_c over the two branches


MASK_SCALES: dict[Scales, MaskScales] = {
    "paper": MaskScales(tokens=None, positions=1.0, branches=1.0),
    "authors": MaskScales(tokens=10.0, positions=10.0, branches=500.0),
}


@dataclass(frozen=True)
class BranchTokens:
    """The tokens of a branch's prompts, each (B, n) bool."""

    own: Tensor  # U_P: all tokens of the prompt, without start, end and padding
    content: Tensor  # T(P): what the branch contributes; a part of `own`


def content_map(probabilities: Tensor, tokens: BranchTokens, scale: float | None) -> Tensor:
    """M of a branch (Eq. 3): the sum of the attention maps of the tokens that the branch contributes.

    Args:
        probabilities: Softmax(Q K^T / sqrt(d)), (B, H, N, n).
        tokens: of the branch.
        scale: of a second softmax over the prompt's own tokens; None: without it.

    Returns:
        (B, H, N).
    """
    if scale is not None:
        others = ~tokens.own[:, None, None]
        probabilities = (scale * probabilities).masked_fill(others, -torch.inf).softmax(-1)
    return (probabilities * tokens.content[:, None, None]).sum(-1)


def auxiliary_mask(concept: Tensor, auxiliary: Tensor, strength: float, scales: MaskScales) -> Tensor:
    """The auxiliary branch's aggregation mask (Eq. 4): the second part of S_c(S_s(M_c), lambda S_s(M_a)).

    The softmax over two branches is a sigmoid, and the concept branch's mask is 1 minus this one. With lambda = 0 the
    mask is sigmoid(-S_s(M_c)), not 0: only lambda to minus infinity leaves the concept branch as it is.

    Args:
        concept: M_c (B, H, N).
        auxiliary: M_a (B, H, N).
        strength: lambda.
        scales: see `MaskScales`.

    Returns:
        (B, H, N) in [0, 1].
    """
    spatial_c, spatial_a = (scales.branches * (scales.positions * one).softmax(-1) for one in (concept, auxiliary))
    return torch.sigmoid(strength * spatial_a - spatial_c)


def integrate_branches(concept: Tensor, auxiliary: Tensor, mask: Tensor) -> Tensor:
    """F_c * (1 - M_hat_a) + F_a * M_hat_a (Eq. 5): outputs (B, H, N, d), mask (B, H, N) -> (B, H, N, d)."""
    weights = mask[..., None].to(concept.dtype)
    return concept * (1 - weights) + auxiliary * weights


@dataclass(frozen=True)
class DualBranchIntegration:
    """Eqs. 3-5 in the cross-attention layers of one pass of the UNet.

    The rows of the UNet's batch are [..., auxiliary (B), concept (B)]; only those of the concept branch are changed.

    Attributes:
        concept: Tokens of the concept branch, with {V*, noun} as content.
        auxiliary: Tokens of the auxiliary branch, with all but the auxiliary noun as content.
        layers: The layers with a DBIM -> the latent's size divided by that of the layer's grid.
        strength: lambda.
        scales: See `MaskScales`; None adds the branches without masks (the ablation "w/o mask").
        masks: Has M_hat_a of the pass afterwards: downscale -> for each layer the mean over heads (B, N).
    """

    concept: BranchTokens
    auxiliary: BranchTokens
    layers: Mapping[str, int]
    strength: float
    scales: MaskScales | None
    masks: dict[int, list[Tensor]] = field(default_factory=dict)

    def wants(self, layer: str) -> bool:
        """Whether the layer has a DBIM."""
        return layer in self.layers

    def integrate(self, layer: str, query: Tensor, key: Tensor, mask: Tensor | None, attended: Tensor) -> Tensor:
        """See `TextIntegration`."""
        batch = len(self.concept.own)
        others, auxiliary, concept = attended[: -2 * batch], attended[-2 * batch : -batch], attended[-batch:]
        if self.scales is None:
            return torch.cat([others, auxiliary, concept + auxiliary])
        own_mask = None if mask is None else mask[-2 * batch :]
        maps_a, maps_c = _probabilities(query[-2 * batch :], key[-2 * batch :], own_mask).chunk(2)
        weights = auxiliary_mask(
            content_map(maps_c, self.concept, self.scales.tokens),
            content_map(maps_a, self.auxiliary, self.scales.tokens),
            self.strength,
            self.scales,
        )
        self.masks.setdefault(self.layers[layer], []).append(weights.mean(1))
        return torch.cat([others, auxiliary, integrate_branches(concept, auxiliary, weights)])


def _probabilities(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax(Q K^T / sqrt(d) + mask) (B, H, N, n), at least in fp32."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores = (query.to(dtype) @ key.to(dtype).transpose(2, 3)) / query.shape[-1] ** 0.5
    return (scores if mask is None else scores + mask.to(dtype)).softmax(-1)
