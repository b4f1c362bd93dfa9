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
    use_gpu: Operation[bool] = False
    gpus_per_actor: Operation[Gpus] = 1.0
    """A share of a GPU, with `use_gpu`."""
    batch_size: Operation[PositiveInt] = 64
