"""The settings of the command `serve`."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from annotated_types import Ge, Le
from pydantic import StringConstraints
from pydantic.dataclasses import dataclass

from model.settings import STRICT, NonNegativeInt, PositiveFloat, PositiveInt, Text, Words
from stages.settings import Operation, Port

HostName = Annotated[
    str,
    StringConstraints(pattern=r"^(\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)$"),
    Words("a host name or an address without a port, or *.name for all below a name, or *"),
]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ServeConfig:
    """The HTTP endpoint."""

    host: Operation[Text] = "127.0.0.1"
    port: Operation[Port] = 8000
    allow_anonymous: Operation[bool] = False
    """Needed to listen to other machines without API keys (REALWORD_API_KEYS in the environment)."""
    allowed_hosts: Operation[list[HostName]] = field(default_factory=list)
    """Names by which clients ask this server, besides `host` and those of this machine's loopback interface."""
    requests_per_minute: Operation[PositiveInt | None] = None
    """Of an API key, or without keys of an address; a request for n pictures counts as n; null: no limit."""
    concurrent_requests: Operation[PositiveInt | None] = None
    """Of an API key, or without keys of an address; null: no limit."""
    registry_check_seconds: Operation[PositiveFloat] = 10.0
    """How often the registry is asked which versions are the champions."""
    replicas: Operation[PositiveInt] = 1
    """Copies of the model."""
    max_replicas: Operation[PositiveInt | None] = None
    """More copies are started while requests wait, up to this many; null: never."""
    use_gpu: Operation[bool] = False
    """A GPU for each copy."""
    max_batch_size: Operation[PositiveInt] = 4
    """Pictures that a replica paints at once."""
    max_queued_requests: Operation[NonNegativeInt] = 16
    """Pictures that wait for a place in a replica's batch; requests with more are refused."""
    max_cached_bytes: Operation[NonNegativeInt] = 268_435_456
    """Of the encodings of subjects' pictures, which a replica keeps for the next request with them."""
    max_picture_bytes: Operation[PositiveInt] = 10_000_000
    """Of all pictures and masks of a request together."""
    max_picture_pixels: Operation[PositiveInt] = 16_777_216
    """Width times height of all pictures and masks of a request together."""
    max_concepts: Operation[NonNegativeInt] = 100
    """That clients may upload and the run folder keeps; 0: clients cannot upload concepts."""
    max_concept_bytes: Operation[PositiveInt] = 100_000_000
    """Of the files of an uploaded concept together."""
    max_steps: Operation[Annotated[int, Ge(1), Le(1000)]] = 100
    """Of the sampler, for a request."""
    safety_checker: Operation[Text | None] = None
    """A Stable Diffusion with one, whose checker refuses pictures that come in and that are painted; null: none."""
    timeout_seconds: Operation[PositiveFloat] = 60.0
    """From the request to its last picture, waiting included; a server that is stopped ends within this time."""
    mark_generated: Operation[bool] = True
    """Painted pictures say in their metadata that a model has made them (IPTC's digital source type)."""

    def __post_init__(self) -> None:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas={self.max_replicas} is below replicas={self.replicas}; raise it, or lower that"
            )
