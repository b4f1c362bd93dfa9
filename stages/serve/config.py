"""The settings of the command `serve`."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le
from pydantic.dataclasses import dataclass

from model.settings import STRICT, NonNegativeInt, PositiveFloat, PositiveInt, Text
from stages.settings import Operation, Port


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ServeConfig:
    """The HTTP endpoint."""

    host: Operation[Text] = "127.0.0.1"
    port: Operation[Port] = 8000
    registry_check_seconds: Operation[PositiveFloat] = 10.0
    """How often the registry is asked which version is the champion."""
    replicas: Operation[PositiveInt] = 1
    """Copies of the model."""
    max_replicas: Operation[PositiveInt | None] = None
    """More copies are started while requests wait, up to this many; null: never."""
    use_gpu: Operation[bool] = False
    """A GPU for each copy."""
    max_batch_size: Operation[PositiveInt] = 4
    """Pictures painted at once."""
    max_queued_requests: Operation[NonNegativeInt] = 16
    """More are refused."""
    max_picture_bytes: Operation[PositiveInt] = 10_000_000
    """Of all pictures and masks of a request together."""
    max_steps: Operation[Annotated[int, Ge(1), Le(1000)]] = 100
    """Of the sampler, for a request."""
    timeout_seconds: Operation[PositiveFloat] = 60.0
    """From the request to its last picture, waiting included; a server that is stopped ends within this time."""

    def __post_init__(self) -> None:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas={self.max_replicas} is below replicas={self.replicas}; raise it, or lower that"
            )
