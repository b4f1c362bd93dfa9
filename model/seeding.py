"""Random numbers as a function of their purpose, so that a resumed run draws the same numbers again."""

from __future__ import annotations

import hashlib

import torch


def seed_of(*parts: int | str) -> int:
    """A seed (63 bits) that depends on all parts, such as (seed, step, slot)."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_of(*parts: int | str) -> torch.Generator:
    """A source of random numbers (CPU) that depends on all parts."""
    return torch.Generator().manual_seed(seed_of(*parts))
