"""Ten procedural backgrounds, each a pure function of (name, seed) with the same content at every size."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

Image = NDArray[np.floating[Any]]  # (H, W, 3) RGB in [0, 1]
Field = NDArray[np.floating[Any]]  # (H, W)
Share = Field | NDArray[np.bool_] | float
_GRAIN = 64  # cells per side of the finest texture


def _ramp(values: Field) -> Field:
    """Clip to [0, 1]; turns signed distances into coverages."""
    return np.clip(values, 0, 1).astype(np.float32)


def _mix(first: Image, second: Image, share: Share) -> Image:
    weight = np.asarray(share, np.float32)[..., None]
    mixed: Image = first * (1 - weight) + second * weight
    return mixed


class Canvas:
    """Coordinates and seeded textures of one picture; x grows to the right and y downwards, both in [0, 1)."""

    def __init__(self, seed: int, size: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.size = size
        axis = np.arange(size, dtype=np.float32) / size
        self.x, self.y = np.meshgrid(axis, axis)
        cell = np.arange(size) * _GRAIN // size
        self.grain: Field = self.rng.random((_GRAIN, _GRAIN), np.float32)[cell[:, None], cell]
        self.horizon = 0.3 + 0.22 * self.rng.random()

    def uniform(self) -> float:
        """Draw the next random number in [0, 1)."""
        return float(self.rng.random())

    def tint(self, red: float, green: float, blue: float) -> Image:
        """A colour with a little jitter, broadcastable over the picture."""
        jitter = (self.rng.random(3) - 0.5) * 0.08
        return (np.array((red, green, blue)) + jitter).astype(np.float32)

    def below(self, line: Field | float) -> Field:
        """Coverage of the area below a line, with an edge one pixel soft."""
        return _ramp((self.y - line) * self.size)

    def clouds(self, columns: int, rows: int) -> Field:
        """Smooth noise, about in [0, 1], with the given number of cells."""
        grid = torch.from_numpy(self.rng.random((1, 1, rows + 1, columns + 1), np.float32))
        smooth = F.interpolate(grid, (self.size, self.size), mode="bicubic", align_corners=True)
        return smooth[0, 0].numpy()

    def wave(self, cycles: float) -> Field:
        """A sine along x with a random phase, in [-1, 1]."""
        return np.sin(self.x * cycles + 6 * self.uniform())

    def sky(self) -> Image:
        """A day sky that pales towards the horizon, with clouds."""
        blue = _mix(self.tint(0.4, 0.62, 0.92), self.tint(0.8, 0.88, 0.96), self.y / self.horizon * 0.8)
        return _mix(blue, self.tint(0.97, 0.97, 0.98), np.clip((self.clouds(5, 9) - 0.6) * 2.5, 0, 0.7))


def _beach(c: Canvas) -> Image:
    sand = _mix(c.tint(0.93, 0.84, 0.62), c.tint(0.85, 0.73, 0.5), c.clouds(6, 6) * 0.6 + c.grain * 0.2)
    shore = c.horizon + 0.1 + 0.05 * c.wave(9)
    depth = _ramp((c.y - c.horizon) / 0.12)
    sea = _mix(c.tint(0.15, 0.55, 0.72), c.tint(0.55, 0.82, 0.86), depth)
    return _mix(_mix(c.sky(), sea, c.below(c.horizon)), sand, c.below(shore))


def _desert(c: Canvas) -> Image:
    far, near = c.horizon + 0.08 * c.wave(5), c.horizon + 0.22 + 0.1 * c.wave(4)
    sky = _mix(c.tint(0.95, 0.75, 0.5), c.tint(0.98, 0.88, 0.7), c.y / c.horizon)
    dunes = _mix(sky, c.tint(0.85, 0.52, 0.25), c.below(far))
    dunes = _mix(dunes, c.tint(0.93, 0.63, 0.33), c.below(near))
    ripples = np.sin(c.y * 60 + c.clouds(6, 6) * 10)
    shaded: Image = dunes * (1 - 0.07 * ripples * c.below(far))[..., None]
    return shaded


def _snow(c: Canvas) -> Image:
    fold = (c.x * (1.5 + c.uniform()) + c.uniform()) % 1
    ridge = c.horizon - 0.36 * np.abs(fold - 0.5) + 0.05
    sky = _mix(c.tint(0.62, 0.72, 0.86), c.tint(0.8, 0.86, 0.94), c.y)
    hills = _mix(sky, c.tint(0.5, 0.58, 0.7), c.below(ridge))
    field = _mix(c.tint(0.95, 0.97, 1.0), c.tint(0.82, 0.88, 0.97), c.clouds(6, 6) * 0.8)
    return _mix(_mix(hills, field, c.below(c.horizon)), np.ones(3, np.float32), c.grain > 0.988)


def _grass(c: Canvas) -> Image:
    blades = _ramp(c.clouds(6, 6) * 0.6 + c.grain * 0.5)
    meadow = _mix(c.tint(0.25, 0.62, 0.18), c.tint(0.45, 0.78, 0.25), blades)
    return _mix(c.sky(), meadow, c.below(c.horizon))


def _night(c: Canvas) -> Image:
    sky = _mix(c.tint(0.03, 0.03, 0.16), c.tint(0.12, 0.1, 0.32), c.y)
    sky = _mix(sky, c.tint(1.0, 1.0, 0.9), c.grain > 0.988)
    moon_x, moon_y = 0.15 + 0.7 * c.uniform(), 0.1 + 0.15 * c.uniform()
    disc = _ramp((0.09 - np.hypot(c.x - moon_x, c.y - moon_y)) * c.size)
    hills = c.below(0.78 + 0.06 * c.wave(7))
    return _mix(_mix(sky, c.tint(0.98, 0.96, 0.8), disc), c.tint(0.04, 0.05, 0.08), hills)


def _street(c: Canvas) -> Image:
    count = int(c.rng.integers(5, 8))
    house = np.minimum((c.x * count).astype(int), count - 1)
    roof = (c.rng.random(count, np.float32) * 0.35)[house]
    tones = (c.rng.random((count, 1)) * 0.35 + 0.35) * (1 + 0.15 * (c.rng.random((count, 3)) - 0.5))
    window = ((c.x * count * 3 % 1) > 0.5) & ((c.y * 16 % 1) > 0.5)
    lit = c.tint(0.95, 0.9, 0.6) * (1.0 if c.uniform() > 0.5 else 0.5)
    facade = _mix(tones[house].astype(np.float32), lit, window)
    town = _mix(c.sky(), facade, c.y > roof)
    town = _mix(town, c.tint(0.3, 0.3, 0.33) + 0.04 * c.grain[..., None], c.below(c.horizon + 0.2))
    dashes = (np.abs(c.y - 0.85) < 0.025) & ((c.x * 5 + c.uniform()) % 1 > 0.4)
    return _mix(town, c.tint(0.95, 0.9, 0.5), dashes)


def _forest(c: Canvas) -> Image:
    leaves = _mix(c.tint(0.08, 0.25, 0.1), c.tint(0.25, 0.45, 0.15), _ramp(c.clouds(6, 6) * 0.7 + c.grain * 0.3))
    bark = (0.7 + 0.4 * c.grain)[..., None]
    for _ in range(5):
        centre, half_width, foot = c.uniform(), 0.03 + 0.035 * c.uniform(), 0.75 + 0.15 * c.uniform()
        trunk = (np.abs(c.x - centre) < half_width) & (c.y < foot)
        leaves = _mix(leaves, c.tint(0.3, 0.2, 0.1) * bark, trunk)
    return _mix(leaves, c.tint(0.2, 0.35, 0.1) * bark, c.below(0.8))


def _ocean(c: Canvas) -> Image:
    swell = c.clouds(6, 6)
    crest = np.sin(c.y**1.3 * 55 + 5 * swell + 3 * c.wave(8)) * 0.5 + 0.5
    water = _mix(c.tint(0.04, 0.25, 0.5), c.tint(0.2, 0.55, 0.75), crest * 0.6 + swell * 0.2)
    surface = c.below(c.horizon * 0.6)
    foam = np.clip((crest * swell - 0.72) * 6, 0, 0.8) * surface
    return _mix(_mix(c.sky(), water, surface), c.tint(0.9, 0.96, 1.0), foam)


def _brick(c: Canvas) -> Image:
    rows = int(c.rng.integers(6, 9))
    along = c.y * rows + c.uniform()
    row = along.astype(int)
    across = c.x * rows / 2 + 0.5 * (row % 2) + c.uniform()
    tone = c.rng.random((32, 32), np.float32)[row % 32, across.astype(int) % 32]
    wall = _mix(c.tint(0.72, 0.3, 0.2), c.tint(0.55, 0.2, 0.15), tone * 0.9)
    joint = (along % 1 < 0.14) | (across % 1 < 0.08)
    pointed: Image = _mix(wall, c.tint(0.8, 0.76, 0.7), joint) * (0.93 + 0.1 * c.grain)[..., None]
    return pointed


def _wood(c: Canvas) -> Image:
    plank = c.x * int(c.rng.integers(4, 7)) + c.uniform()
    tone = c.rng.random(16, np.float32)[plank.astype(int) % 16]
    boards = _mix(c.tint(0.68, 0.45, 0.24), c.tint(0.5, 0.31, 0.16), tone)
    boards = boards * (0.9 + 0.14 * c.clouds(24, 3))[..., None]
    return _mix(boards, c.tint(0.25, 0.14, 0.07), plank % 1 < 0.08)


_PAINTERS: dict[str, Callable[[Canvas], Image]] = {
    "beach": _beach,
    "desert": _desert,
    "snow": _snow,
    "grass": _grass,
    "night": _night,
    "street": _street,
    "forest": _forest,
    "ocean": _ocean,
    "brick": _brick,
    "wood": _wood,
}
BACKGROUNDS: tuple[str, ...] = tuple(_PAINTERS)


def paint_background(name: str, seed: int, size: int = 64) -> Image:
    """Paint a background as (size, size, 3) RGB in [0, 1]."""
    if name not in _PAINTERS:
        raise ValueError(f"unknown background {name!r}; backgrounds are {', '.join(BACKGROUNDS)}")
    return np.clip(_PAINTERS[name](Canvas(seed, size)), 0, 1).astype(np.float32)
