"""A cache in memory for what frozen models compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: The largest size of a cache, bytes.
_CACHE_BYTES = 512 * 2**20


class Cache:
    """Tuples of tensors by key. The first ones are kept, up to `capacity` bytes; others are made again each time."""

    def __init__(self, capacity: int = _CACHE_BYTES) -> None:
        self._left = capacity
        self._kept: dict[str, tuple[Tensor, ...]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, keys: Sequence[str], make: Callable[[list[str]], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Batches with one row for each key. `make` is called once, with the distinct keys that are missing."""
        missing = [key for key in dict.fromkeys(keys) if key not in self._kept]
        made = dict(zip(missing, zip(*make(missing), strict=True), strict=True)) if missing else {}
        rows = [made[key] if key in made else self._kept[key] for key in keys]
        for key, tensors in made.items():
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            if size <= self._left:
                self._kept[key] = tuple(tensor.clone() for tensor in tensors)  # not a view of the whole batch
                self._left -= size
        return tuple(torch.stack(column) for column in zip(*rows, strict=True))
