"""The settings of the stage `cache_latents`."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from model.settings import STRICT, PositiveInt
from stages.settings import Gpus, Operation


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CacheLatentsConfig:
    """Latents and text embeddings of the plan's examples, computed once before `train_adapter` and read by it."""

    enabled: bool = False
    """False: `train_adapter` computes them itself."""
    dtype: Literal["float32", "float16"] = "float32"
    """float16: half the storage, for training in half precision."""
    actors: Operation[PositiveInt] = 1
    gpus_per_actor: Operation[Gpus] = 0.0
    """A share of a GPU, such as 0.25; 0: on the CPU."""
    batch_size: Operation[PositiveInt] = 64
