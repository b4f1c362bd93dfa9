"""Scenes: one or two instances in front of a background, with caption, exact alpha and geometry.

`draw_specs` decides what is in a scene (cheap, a pure function of its arguments); `render_scenes` paints it. Both are
deterministic per scene: neither depends on what else is in the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.microworld.backgrounds import BACKGROUNDS, paint_background
from model.microworld.camera import CameraPose, PinholeIntrinsics, matching_pinhole, orbit_pose
from model.microworld.captions import Caption, CaptionFacts, CaptionShares, write_caption
from model.microworld.instances import OPEN_SPLITS, PATTERNS, WORLD_SEED, InstanceId, make_instance
from model.microworld.render import HALF_EXTENT, render_sprites
from model.microworld.shapes import HELD_OUT_CATEGORIES, TRAINED_CATEGORIES

SPRITE_SHARE = 0.75  # sprite resolution over frame resolution
VIEW_SCALE = 0.9  # sprite box over frame in multiview frames
_SPLIT_SEEDS = {"train": 11, "adapter": 12, "test": 13, "judge": 14}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where an object stands; positions in [-1, 1], x to the right and y downwards, scale = sprite box over frame."""

    scale: float
    x: float
    y: float
    tilt: float  # radians
    light: float  # brightness factor


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """An instance, the view of it (yaw and pitch in radians) and its placement in the picture."""

    instance: InstanceId
    yaw: float
    pitch: float
    placement: Placement


@dataclass(frozen=True, kw_only=True)
class Background:
    """A background and how it is lit."""

    name: str
    seed: int
    mirrored: bool = False
    light: float = 1.0


@dataclass(frozen=True, kw_only=True)
class SceneSpec:
    """Everything that determines a picture and its caption."""

    subject: SceneObject
    neighbour: SceneObject | None
    background: Background
    caption: Caption


@dataclass(frozen=True, kw_only=True)
class SceneShares:
    """Distribution of scenes within a split."""

    instances: int = 4096  # of each category; draws are uniform over them
    scale: tuple[float, float] = (0.65, 1.0)
    pair_scale: tuple[float, float] = (0.5, 0.62)
    yaw: float = 0.9  # drawn from [-yaw, yaw]
    pitch: tuple[float, float] = (0.1, 0.55)
    tilt: float = 0.17  # drawn from [-tilt, tilt]
    two_objects: float = 0.15
    captions: CaptionShares = field(default_factory=CaptionShares)


@dataclass(frozen=True)
class Scene:
    """One rendered scene; image (H, W, 3), masks (H, W), all uint8; a mask is the visible alpha of its object."""

    spec: SceneSpec
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    neighbour_mask: NDArray[np.uint8]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the subject in pixels, right and bottom exclusive."""
        rows, columns = np.nonzero(self.mask >= 128)
        if not len(rows):
            return (0, 0, 0, 0)
        return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@dataclass(frozen=True)
class SceneBatch:
    """N rendered scenes; image (N, H, W, 3), masks (N, H, W), all uint8."""

    specs: tuple[SceneSpec, ...]
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    neighbour_mask: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.specs)

    def __getitem__(self, index: int) -> Scene:
        return Scene(self.specs[index], self.image[index], self.mask[index], self.neighbour_mask[index])


@dataclass(frozen=True)
class ViewBatch:
    """N frames of one instance; image (N, H, W, 3), mask (N, H, W), both uint8, and the camera of each frame."""

    instance: InstanceId
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    poses: tuple[CameraPose, ...]
    intrinsics: PinholeIntrinsics


def categories_of(split: str) -> tuple[str, ...]:
    """Categories of a split; only the open splits have the held-out ones."""
    return TRAINED_CATEGORIES + (HELD_OUT_CATEGORIES if split in OPEN_SPLITS else ())


def _draw_placement(rng: np.random.Generator, scale: float, tilt: float, side: int = 0) -> Placement:
    """A random placement within the frame; `side` -1 or 1 restricts it to the left or right half (two objects)."""
    room = max(0.0, 1 - 0.85 * scale)
    x = side * rng.uniform(0.42, 0.5) if side else rng.uniform(-room, room)
    y = rng.uniform(-0.4, 1.0) * room
    return Placement(
        scale=scale, x=float(x), y=float(y), tilt=float(rng.uniform(-tilt, tilt)), light=float(rng.uniform(0.85, 1.15))
    )


def _draw_object(rng: np.random.Generator, instance: InstanceId, shares: SceneShares, side: int = 0) -> SceneObject:
    yaw, pitch = rng.uniform(-shares.yaw, shares.yaw), rng.uniform(*shares.pitch)
    scale = rng.uniform(*(shares.pair_scale if side else shares.scale))
    placement = _draw_placement(rng, float(scale), shares.tilt, side)
    return SceneObject(instance=instance, yaw=float(yaw), pitch=float(pitch), placement=placement)


def _facts(subject: SceneObject, neighbour: SceneObject | None, background: str) -> CaptionFacts:
    instance, placement = make_instance(subject.instance), subject.placement
    size = "small" if placement.scale < 0.73 else "large" if placement.scale > 0.92 else None
    pose = "leaning" if abs(placement.tilt) > 0.11 else "floating" if placement.y < -0.05 else "standing"
    return CaptionFacts(
        category=subject.instance.category,
        colour=instance.colour,
        pattern=PATTERNS[instance.pattern],
        background=background,
        size_word=size,
        pose_word=pose,
        neighbour=neighbour.instance.category if neighbour else None,
        neighbour_is_left=neighbour is not None and neighbour.placement.x < placement.x,
    )


def draw_spec(
    rng: np.random.Generator,
    instance: InstanceId,
    shares: SceneShares,
    background: str | None = None,
    neighbour: InstanceId | None = None,
) -> SceneSpec:
    """Draw a random scene of that instance; the background is drawn too when None."""
    side = int(rng.choice((-1, 1))) if neighbour else 0
    subject = _draw_object(rng, instance, shares, side)
    other = _draw_object(rng, neighbour, shares, -side) if neighbour else None
    name = str(rng.choice(BACKGROUNDS)) if background is None else background
    drawn_background = Background(
        name=name, seed=int(rng.integers(2**31)), mirrored=bool(rng.random() < 0.5), light=float(rng.uniform(0.9, 1.1))
    )
    caption = write_caption(_facts(subject, other, name), rng, shares.captions)
    return SceneSpec(subject=subject, neighbour=other, background=drawn_background, caption=caption)


def draw_specs(
    split: str,
    count: int,
    seed: int,
    *,
    start: int = 0,
    views: int = 1,
    categories: Sequence[str] | None = None,
    shares: SceneShares | None = None,
) -> list[SceneSpec]:
    """Draw scenes `start` to `count` of a split's sequence `seed`; `views` scenes in a row show the same instance."""
    shares = shares or SceneShares()
    names = tuple(categories if categories is not None else categories_of(split))
    if not names:
        raise ValueError("a world needs at least one category, and the configuration names none")
    specs = []
    for position in range(start, count):
        group = np.random.default_rng([WORLD_SEED, _SPLIT_SEEDS[split], seed, position // views])
        category, other_category = (group.permutation(len(names))[[0, -1]]).tolist()
        index, other_index = group.integers(shares.instances, size=2).tolist()
        instance = InstanceId(split=split, category=names[category], index=index)
        other = InstanceId(split=split, category=names[other_category], index=other_index)
        rng = np.random.default_rng([WORLD_SEED, _SPLIT_SEEDS[split], seed, position // views, position % views + 1])
        neighbour = other if len(names) > 1 and rng.random() < shares.two_objects else None
        specs.append(draw_spec(rng, instance, shares, neighbour=neighbour))
    return specs


def _warp(sprites: Tensor, placements: Sequence[Placement], size: int) -> Tensor:
    """Premultiplied sprites (N, 4, S, S) scaled, tilted and moved into frames (N, 4, size, size)."""
    k, x, y, tilt, light = torch.tensor([(p.scale, p.x, p.y, p.tilt, p.light) for p in placements]).unbind(1)
    c, s = tilt.cos() / k, tilt.sin() / k
    inverse = torch.stack([c, s, -(c * x + s * y), -s, c, s * x - c * y], 1).view(-1, 2, 3)
    grid = F.affine_grid(inverse, [len(k), 4, size, size], align_corners=False)
    layer = F.grid_sample(sprites, grid, align_corners=False)
    lit = torch.minimum(layer[:, :3] * light[:, None, None, None], layer[:, 3:])
    return torch.cat([lit, layer[:, 3:]], 1)


def contact_shadow(placements: Sequence[Placement], size: int) -> Tensor:
    """Brightness factor (N, 1, size, size) of a soft contact shadow under each object."""
    k, x, y = (value[:, None, None] for value in torch.tensor([(p.scale, p.x, p.y) for p in placements]).unbind(1))
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    squared = ((axis[None, None, :] - x) / (0.8 * k)) ** 2 + ((axis[None, :, None] - y - 0.82 * k) / (0.22 * k)) ** 2
    return (1 - 0.45 * torch.exp(-1.5 * squared))[:, None]


def _paint_backgrounds(backgrounds: Sequence[Background], size: int) -> Tensor:
    """Lit backgrounds (N, 3, size, size) in [0, 1.1]."""
    painted = [paint_background(background.name, background.seed, size) for background in backgrounds]
    lit = [
        (picture[:, ::-1] if background.mirrored else picture) * np.float32(background.light)
        for picture, background in zip(painted, backgrounds, strict=True)
    ]
    return torch.from_numpy(np.stack(lit)).permute(0, 3, 1, 2)


def _render_layers(objects: Sequence[SceneObject], size: int) -> Tensor:
    """Premultiplied RGBA layers (N, 4, size, size) of placed objects."""
    instances = [make_instance(item.instance) for item in objects]
    yaw, pitch = torch.tensor([item.yaw for item in objects]), torch.tensor([item.pitch for item in objects])
    sprites = render_sprites(instances, yaw, pitch, round(SPRITE_SHARE * size))
    return _warp(sprites, [item.placement for item in objects], size)


def _to_bytes(values: Tensor) -> NDArray[np.uint8]:
    quantised: NDArray[np.uint8] = (values.clamp(0, 1) * 255).round().byte().numpy()
    return quantised


@torch.no_grad()
def render_scenes(specs: Sequence[SceneSpec], size: int = 64) -> SceneBatch:
    """Paint scenes at size x size pixels; the subject stands in front of its neighbour."""
    specs = tuple(specs)
    picture = _paint_backgrounds([spec.background for spec in specs], size)
    neighbours = [spec.neighbour for spec in specs if spec.neighbour]
    rows = [row for row, spec in enumerate(specs) if spec.neighbour]
    layers = _render_layers([spec.subject for spec in specs] + neighbours, size)
    subject, other = layers[: len(specs)], layers[len(specs) :]
    picture = picture * contact_shadow([spec.subject.placement for spec in specs], size)
    other_alpha = torch.zeros(len(specs), 1, size, size)
    if rows:
        shadowed = picture[rows] * contact_shadow([item.placement for item in neighbours], size)
        picture[rows] = other[:, :3] + shadowed * (1 - other[:, 3:])
        other_alpha[rows] = other[:, 3:]
    alpha = subject[:, 3:]
    picture = subject[:, :3] + picture * (1 - alpha)
    image = np.ascontiguousarray(_to_bytes(picture).transpose(0, 2, 3, 1))
    return SceneBatch(specs, image, _to_bytes(alpha)[:, 0], _to_bytes(other_alpha * (1 - alpha))[:, 0])


@torch.no_grad()
def render_views(
    instance: InstanceId, yaws: Sequence[float], pitches: Sequence[float], *, background: Background, size: int = 64
) -> ViewBatch:
    """Paint frames of one instance in the middle of the picture, with the camera of each; all share one background."""
    placement = Placement(scale=VIEW_SCALE, x=0.0, y=0.0, tilt=0.0, light=1.0)
    objects = [
        SceneObject(instance=instance, yaw=yaw, pitch=pitch, placement=placement)
        for yaw, pitch in zip(yaws, pitches, strict=True)
    ]
    layers = _render_layers(objects, size)
    alpha = layers[:, 3:]
    picture = layers[:, :3] + _paint_backgrounds([background], size) * contact_shadow([placement], size) * (1 - alpha)
    image = np.ascontiguousarray(_to_bytes(picture).transpose(0, 2, 3, 1))
    poses = tuple(orbit_pose(yaw, pitch) for yaw, pitch in zip(yaws, pitches, strict=True))
    pixels_per_unit = size * VIEW_SCALE / (2 * HALF_EXTENT)
    return ViewBatch(instance, image, _to_bytes(alpha)[:, 0], poses, matching_pinhole(size, pixels_per_unit))
