from __future__ import annotations

import torch
from torch import Tensor

from model.training.tensor_cache import Cache


def test_full_cache() -> None:
    made: list[list[str]] = []

    def make(keys: list[str]) -> tuple[Tensor, ...]:
        made.append(keys)
        return (torch.tensor([[float(len(key))] * 4 for key in keys]),)

    cache = Cache(capacity=2 * 4 * 4)  # two rows of four float32
    assert cache.get(["a", "bb", "a", "ccc"], make)[0][:, 0].tolist() == [1, 2, 1, 3]
    assert cache.get(["ccc", "a", "bb"], make)[0][:, 0].tolist() == [3, 1, 2]
    assert made == [["a", "bb", "ccc"], ["ccc"]]
    assert len(cache) == 2
