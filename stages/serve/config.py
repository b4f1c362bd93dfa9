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
    replicas: Operation[PositiveInt] = 1
    use_gpu: Operation[bool] = False
    max_batch_size: Operation[PositiveInt] = 4
    """Pictures that a replica paints at once."""
    max_queued_requests: Operation[NonNegativeInt] = 16
    """Pictures that wait for a place in a replica's batch; requests with more are refused."""
    max_cached_bytes: Operation[NonNegativeInt] = 268_435_456
    """Of the encodings of subjects' pictures, which a replica keeps for the next request with them."""
    max_picture_bytes: Operation[PositiveInt] = 10_000_000
    """Of all pictures and masks of a request together."""
    max_steps: Operation[Annotated[int, Ge(1), Le(1000)]] = 100
    """Of the sampler, for a request."""
    timeout_seconds: Operation[PositiveFloat] = 60.0
    """From the request to its last picture, waiting included."""
