"""How much a concept takes over the context of its prompt (Contextualizer, Sec. 3.2 and Table 1).

A model that overfits to a concept's pictures makes the states of a prompt's other tokens resemble the concept's, and
with them their cross-attention maps: what the prompt says besides the concept is lost. Three measures:

    sim_1 = cos(c_b, c_*)       context token b and concept token * of one prompt; lower is better
    sim_2 = cos(c_b, c^_b)      b with the concept, and in the same prompt without it; higher is better
    SKL   = (KL(A_* || A_b) + KL(A_b || A_*)) / 2    of their cross-attention maps; higher is better

Legend of shapes: B prompts, n tokens, c width of a text encoder, q queries (places of the picture).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SMALLEST = 1e-12


def concept_similarity(states: Tensor, concept: Tensor, context: Tensor) -> Tensor:
    """sim_1 (B,): the cosine of concept and context states, a mean over the context tokens of each prompt.

    Args:
        states: (B, n, c), as the UNet reads them.
        concept: (B,) position of the concept token.
        context: (B, n) bool, the context tokens; at least one in each prompt.
    """
    own = states[torch.arange(len(states)), concept]
    return _mean(F.cosine_similarity(states, own[:, None], dim=-1), context)


def context_similarity(states: Tensor, plain: Tensor, context: Tensor) -> Tensor:
    """sim_2 (B,): the cosine of each context token's states with and without the concept.

    Args:
        states: (B, n, c) of the prompts with the concept.
        plain: (B, n, c) of the prompts without it; the same words at the same places.
        context: (B, n) bool.
    """
    return _mean(F.cosine_similarity(states, plain, dim=-1), context)


def symmetric_divergence(maps: Tensor, concept: Tensor, context: Tensor) -> Tensor:
    """SKL (B,), in nats: of the concept's map and each context token's, which are distributions over the places.

    Args:
        maps: (B, q, n) cross-attention probabilities.
        concept: (B,).
        context: (B, n) bool.
    """
    shares = maps / maps.sum(1, keepdim=True).clamp(min=_SMALLEST)
    logs = shares.clamp(min=_SMALLEST).log()
    own = torch.arange(len(maps))
    share, log = shares[own, :, concept][..., None], logs[own, :, concept][..., None]
    # KL(p || r) + KL(r || p) = sum of (p - r) (log p - log r)
    divergence = ((share - shares) * (log - logs)).sum(1) / 2
    return _mean(divergence, context)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """The means (B,) of the chosen values (B, n) of each row."""
    return (values * chosen).sum(1) / chosen.sum(1)
