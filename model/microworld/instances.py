"""Instances: one concrete object each, its shape, colours and pattern a pure function of its id."""

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.microworld.shapes import CATEGORIES, HELD_OUT_CATEGORIES

SPLITS = ("train", "adapter", "test", "judge")
OPEN_SPLITS = (
    "test",
    "judge",
)  # where held-out categories exist; "judge" is for measurements, never for training a measured model
WORLD_SEED = 20_240_311

COLOURS: dict[str, tuple[float, float, float]] = {  # hue, saturation, value
    "red": (0.0, 0.85, 0.85),
    "orange": (0.075, 0.9, 0.95),
    "yellow": (0.15, 0.85, 0.95),
    "green": (0.35, 0.8, 0.65),
    "blue": (0.61, 0.85, 0.85),
    "purple": (0.77, 0.65, 0.7),
    "pink": (0.92, 0.45, 0.97),
    "white": (0.1, 0.05, 0.95),
    "black": (0.6, 0.2, 0.15),
}
COLOUR_NAMES = tuple(COLOURS)

PATTERNS = ("solid", "bands", "diagonals", "spots", "checks", "dip")
PATTERN_SHARES = (0.42, 0.14, 0.1, 0.12, 0.11, 0.11)


@dataclass(frozen=True, kw_only=True)
class InstanceId:
    """Identifies an object of the world: the same id always gives the same object."""

    split: str
    category: str
    index: int

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"unknown split {self.split!r}; splits are {', '.join(SPLITS)}")
        if self.category not in CATEGORIES:
            raise ValueError(f"unknown category {self.category!r}; categories are {', '.join(CATEGORIES)}")
        if self.split not in OPEN_SPLITS and self.category in HELD_OUT_CATEGORIES:
            raise ValueError(f"category {self.category!r} is held out: split {self.split!r} does not have it")
        if self.index < 0:
            raise ValueError(f"instance index must not be negative: {self.index}")

    def __str__(self) -> str:
        return f"{self.split}-{self.category}-{self.index:06d}"


@dataclass(frozen=True, kw_only=True)
class Instance:
    """An object, independent of the view."""

    id: InstanceId
    shape: NDArray[np.float32]  # (4,) shape numbers in [0, 1)
    palette: NDArray[np.float32]  # (4, 3) RGB of main, accent, dark and pattern material
    colour: str  # names of the colours of the palette's main, accent and pattern material
    accent_colour: str
    pattern_colour: str
    pattern: int  # index into PATTERNS
    frequency: float  # of the pattern, per world unit
    phase: float  # of the pattern, in [0, 1)


def _jittered_rgb(name: str, rng: np.random.Generator) -> tuple[float, float, float]:
    hue, saturation, value = COLOURS[name]
    dh, ds, dv = (rng.random(3) - 0.5) * (0.05, 0.15, 0.15)
    return colorsys.hsv_to_rgb((hue + dh) % 1, float(np.clip(saturation + ds, 0, 1)), float(np.clip(value + dv, 0, 1)))


def make_instance(instance_id: InstanceId) -> Instance:
    """Draw the object that the id identifies."""
    split, category = SPLITS.index(instance_id.split), CATEGORIES.index(instance_id.category)
    rng = np.random.default_rng([WORLD_SEED, split, category, instance_id.index])
    shape = rng.random(4, dtype=np.float32)
    main = int(rng.integers(len(COLOURS)))
    accent, pattern = (main + rng.integers(1, len(COLOURS), 2)) % len(COLOURS)
    dark = 0.12 + 0.1 * rng.random(3)
    palette = [_jittered_rgb(COLOUR_NAMES[index], rng) for index in (main, accent, pattern)]
    return Instance(
        id=instance_id,
        shape=shape,
        palette=np.array([palette[0], palette[1], dark, palette[2]], dtype=np.float32),
        colour=COLOUR_NAMES[main],
        accent_colour=COLOUR_NAMES[accent],
        pattern_colour=COLOUR_NAMES[pattern],
        pattern=int(rng.choice(len(PATTERNS), p=PATTERN_SHARES)),
        frequency=float(rng.uniform(2.0, 3.4)),
        phase=float(rng.random()),
    )
