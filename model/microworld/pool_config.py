"""Which scenes a pool holds. In a module of its own: the pipeline's configuration has it and imports nothing heavy."""

import json
from dataclasses import asdict, dataclass

from model.microworld.version import WORLD_VERSION


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Which scenes a pool holds."""

    split: str = "train"
    count: int = 61_440
    seed: int = 1
    size: int = 64
    two_objects: float = 0.15  # share of the scenes; the world's usual one
    categories: tuple[str, ...] | None = None  # all of the split when None

    def stamp(self) -> str:
        """What must agree for a pool on disk to be reused."""
        return json.dumps({"world": WORLD_VERSION, **asdict(self)}, sort_keys=True)
