"""Contrastive loss over instances, shared by the image encoders and the judge."""

import torch
import torch.nn.functional as F
from torch import Tensor

_SCALE = 12.0  # inverse temperature


def object_mean(states: Tensor, cover: Tensor) -> Tensor:
    """Mean (B, c) of patch states (B, n, c) over the object, which covers each patch by `cover` (B, n)."""
    return (states * cover[..., None]).sum(1) / cover.sum(1, keepdim=True).clamp(min=1e-3)


def object_features(states: Tensor, cover: Tensor) -> Tensor:
    """`object_mean` at unit length."""
    return F.normalize(object_mean(states, cover), dim=-1)


def instance_loss(first: Tensor, second: Tensor, instance: Tensor) -> Tensor:
    """InfoNCE between two views of B instances, both ways (van den Oord et al. 2018).

    Args:
        first: Unit features (B, c) of one view.
        second: Unit features (B, c) of the other view.
        instance: Ids (B,); rows with the same id do not repel each other.
    """
    logits = _SCALE * first @ second.T
    twins = (instance[:, None] == instance[None]) & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(twins, -1e4)
    target = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
