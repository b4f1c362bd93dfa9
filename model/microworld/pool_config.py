"""Which scenes a pool holds. In a module of its own: the pipeline's configuration has it and imports nothing heavy."""

import json
from dataclasses import asdict
from typing import Annotated, Literal

from annotated_types import MinLen
from pydantic.dataclasses import dataclass

from model.microworld.version import WORLD_VERSION
from model.settings import STRICT, Pixels, PositiveInt, Seed, Share, Text

_FORMAT = 2  # of a pool's files
Split = Literal["train", "adapter", "test", "judge"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PoolConfig:
    """Which scenes a pool holds."""

    split: Split = "train"
    """The part of the world that the scenes' objects come from."""
    count: PositiveInt = 61_440
    """Scenes."""
    seed: Seed = 1
    size: Pixels = 64
    """Side of a picture, pixels."""
    two_objects: Share = 0.15
    """Share of the scenes with two objects; the default is the world's usual one."""
    categories: Annotated[tuple[Text, ...], MinLen(1)] | None = None
    """null: all of the split."""

    def stamp(self) -> str:
        """What must agree for a pool on disk to be reused."""
        return json.dumps({"world": WORLD_VERSION, "format": _FORMAT, **asdict(self)}, sort_keys=True)
