"""Vectorised orthographic sphere tracing of instances into premultiplied RGBA sprites.

All rays of a category march together; a ray that has hit the object or left the bounding sphere is removed from the
batch. Silhouettes are anti-aliased from the closest approach of a ray, in pixels. No global random state is read.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.microworld.camera import view_rotation
from model.microworld.instances import PATTERNS, Instance
from model.microworld.sdf import Points
from model.microworld.shapes import BOUND, MAIN, MATERIALS, PATTERN, SHAPES, Shape, ShapeFunction

HALF_EXTENT = 1.08  # of the orthographic window, in world units
MARCH_STEPS = 24
_STRIDE = 4  # marching steps between two compactions of the ray set
_CONVERGED = 0.004  # world units
_VIEWS_AT_ONCE = 96  # bounds peak memory to about 100 MiB at 48 x 48
_LIGHT = (-0.5, 0.7, 0.6)  # towards the light, in camera axes (right, up, towards the viewer)
_NORMAL_OFFSETS = ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1))


@dataclass(frozen=True)
class _Rays:
    """R rays in object space, each with the shape numbers of its object."""

    origin: Tensor  # (3, R) where the ray meets the plane through the object's centre
    direction: Tensor  # (3, R) unit vectors
    reach: Tensor  # (R,) half length of the ray's chord through the bounding sphere
    shape: Tensor  # (4, R)

    def __getitem__(self, index: Tensor) -> "_Rays":
        return _Rays(self.origin[:, index], self.direction[:, index], self.reach[index], self.shape[:, index])

    def at(self, depth: Tensor) -> Points:
        return Points(*(self.origin + depth * self.direction))


def _numbers(shape: Tensor) -> Shape:
    return shape[0], shape[1], shape[2], shape[3]


def _distance(surface: ShapeFunction, points: Points, shape: Tensor) -> Tensor:
    """Distance (R,) to the nearest part."""
    nearest, *others = (distance for distance, _ in surface(points, _numbers(shape)))
    for distance in others:
        nearest = torch.minimum(nearest, distance)
    return nearest


def _march(surface: ShapeFunction, rays: _Rays, steps: int) -> tuple[Tensor, Tensor]:
    """Closest approach (R,) of every ray to the surface, and its depth (R,)."""
    depth = -rays.reach
    closest, closest_depth = torch.full_like(depth, torch.inf), depth.clone()
    active = torch.arange(len(depth))
    for _ in range(0, steps, _STRIDE):
        local, t, best, best_t = rays[active], depth[active], closest[active], closest_depth[active]
        for _ in range(_STRIDE):
            gap = _distance(surface, local.at(t), local.shape)
            best_t = torch.where(gap < best, t, best_t)
            best = torch.minimum(gap, best)
            t = t + 0.95 * gap.clamp(-0.1, 0.5)
        depth[active], closest[active], closest_depth[active] = t, best, best_t
        active = active[(best > _CONVERGED) & (t < local.reach)]
        if not len(active):
            break
    return closest, closest_depth


def _unit(vectors: Tensor) -> Tensor:
    """Unit vectors (3, R), as `F.normalize` makes them; its reduction over such a short dimension is slow."""
    x, y, z = vectors
    return vectors / (x * x + y * y + z * z).sqrt().clamp(min=1e-12)


def _normals(surface: ShapeFunction, p: Points, shape: Tensor, step: float = 0.015) -> Tensor:
    """Outward unit normals (3, R) by tetrahedral differences."""
    total = torch.zeros(3, len(p.x))
    for offset in _NORMAL_OFFSETS:
        moved = Points(p.x + step * offset[0], p.y + step * offset[1], p.z + step * offset[2])
        total += torch.tensor(offset, dtype=torch.float32)[:, None] * _distance(surface, moved, shape)
    return _unit(total)


def _patterned(p: Points, pattern: Tensor, frequency: Tensor, phase: Tensor) -> Tensor:
    """Whether each point (R,) has the colour of the pattern: at most a third of the surface does."""
    angle = 2 * np.pi * phase

    def wave(coordinate: Tensor) -> Tensor:
        return torch.sin(coordinate * frequency * 3.1 + angle)

    blobs = torch.cos(p.x * frequency * 2.2) + torch.cos(p.y * frequency * 2.2 + angle)
    fields = {
        "solid": torch.full_like(p.x, -1.0),
        "bands": wave(p.y * 0.8) - 0.5,
        "diagonals": wave((p.x + p.y) * 0.6) - 0.5,
        "spots": blobs + torch.cos(p.z * frequency * 2.2) - 1.1,
        "checks": wave(p.x * 0.8) * wave(p.y * 0.8) - 0.2,
        "dip": p.y - 0.2 - 0.25 * phase,
    }
    return torch.stack([fields[name] for name in PATTERNS]).gather(0, pattern[None])[0] > 0


def _materials(surface: ShapeFunction, seen: "_SeenPoints", appearance: "_Appearance") -> Tensor:
    """Material (R,) of surface points."""
    parts = surface(seen.points, _numbers(seen.rays.shape))
    nearest = torch.stack([distance for distance, _ in parts]).argmin(0)
    material = torch.tensor([material for _, material in parts])[nearest]
    pattern = (values[seen.view] for values in (appearance.pattern, appearance.frequency, appearance.phase))
    return torch.where((material == MAIN) & _patterned(seen.points, *pattern), PATTERN, material)


def _shade(surface: ShapeFunction, seen: "_SeenPoints", appearance: "_Appearance", rotation: Tensor) -> Tensor:
    """RGB (R, 3) of surface points by Blinn-Phong shading under one light fixed to the camera."""
    albedo = appearance.palette[seen.view, _materials(surface, seen, appearance)]
    to_light = F.normalize(torch.tensor(_LIGHT), dim=0)
    light = torch.einsum("nij,i->jn", rotation, to_light)[:, seen.view]
    half = _unit(light - seen.rays.direction)
    normal = _normals(surface, seen.points, seen.rays.shape)
    diffuse = (normal * light).sum(0).clamp(min=0)
    specular = (normal * half).sum(0).clamp(min=0) ** 24
    return (albedo * (0.42 + 0.62 * diffuse[:, None]) + 0.18 * specular[:, None]).clamp(0, 1)


@dataclass(frozen=True)
class _Appearance:
    """The appearance parameters of N instances, stacked."""

    shape: Tensor  # (N, 4)
    palette: Tensor  # (N, 4, 3)
    pattern: Tensor  # (N,)
    frequency: Tensor  # (N,)
    phase: Tensor  # (N,)

    @classmethod
    def stack(cls, instances: Sequence[Instance]) -> "_Appearance":
        return cls(
            torch.from_numpy(np.stack([instance.shape for instance in instances])),
            torch.from_numpy(np.stack([instance.palette for instance in instances])),
            torch.tensor([instance.pattern for instance in instances]),
            torch.tensor([instance.frequency for instance in instances]),
            torch.tensor([instance.phase for instance in instances]),
        )


def _pixel_grid(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Right and up coordinates (P,) of the pixels whose rays meet the bounding sphere, and their raster index (P,)."""
    centres = ((torch.arange(size) + 0.5) / size * 2 - 1) * HALF_EXTENT
    up, right = torch.meshgrid(-centres, centres, indexing="ij")
    pixel = (right.square() + up.square() < BOUND**2).flatten().nonzero()[:, 0]
    return right.flatten()[pixel], up.flatten()[pixel], pixel


def _rows(vectors: Tensor) -> Tensor:
    """Vectors (..., D) as (D, R), each coordinate contiguous."""
    return vectors.reshape(-1, vectors.shape[-1]).T.contiguous()


@dataclass(frozen=True)
class _SeenPoints:
    """The R surface points that N views of size x size pixels show."""

    points: Points
    rays: _Rays
    view: Tensor  # (R,) of N
    pixel: Tensor  # (R,) raster index over all views
    coverage: Tensor  # (R,) share of the pixel that the object covers


def _see(surface: ShapeFunction, appearance: _Appearance, rotation: Tensor, size: int) -> _SeenPoints:
    """Trace N views of one category; rotation (N, 3, 3) has the camera axes as rows."""
    count = len(rotation)
    right, up, pixel = _pixel_grid(size)
    view = torch.arange(count).repeat_interleave(len(pixel))
    axes = rotation[:, :, None]  # (N, 3, 1, 3)
    origin = right[:, None] * axes[:, 0] + up[:, None] * axes[:, 1]  # (N, P, 3)
    direction = -axes[:, 2].expand_as(origin)
    reach = (BOUND**2 - right.square() - up.square()).sqrt().repeat(count)
    rays = _Rays(_rows(origin), _rows(direction), reach, _rows(appearance.shape[view]))
    closest, depth = _march(surface, rays, MARCH_STEPS)
    footprint = 2 * HALF_EXTENT / size
    coverage = ((footprint - closest) / (footprint - _CONVERGED)).clamp(0, 1)
    seen = coverage.nonzero()[:, 0]
    rays, view = rays[seen], view[seen]
    raster = view * size * size + pixel.repeat(count)[seen]
    return _SeenPoints(rays.at(depth[seen]), rays, view, raster, coverage[seen])


def _render_category(surface: ShapeFunction, appearance: _Appearance, rotation: Tensor, size: int) -> Tensor:
    """Sprites (N, 4, size, size) of N views of one category."""
    seen = _see(surface, appearance, rotation, size)
    rgb, coverage = _shade(surface, seen, appearance, rotation), seen.coverage[:, None]
    sprites = torch.zeros(len(rotation) * size * size, 4)
    sprites[seen.pixel] = torch.cat([rgb * coverage, coverage], 1)
    return sprites.view(-1, size, size, 4).permute(0, 3, 1, 2)


def _batches(instances: Sequence[Instance], size: int) -> Iterator[tuple[ShapeFunction, list[int], _Appearance]]:
    """Positions of instances of the same category, few enough to be rendered at once, with shape and appearance."""
    groups: dict[str, list[int]] = defaultdict(list)
    for position, instance in enumerate(instances):
        groups[instance.id.category].append(position)
    views_at_once = max(1, _VIEWS_AT_ONCE * 48 * 48 // (size * size))
    for category, members in groups.items():
        for start in range(0, len(members), views_at_once):
            chunk = members[start : start + views_at_once]
            yield SHAPES[category], chunk, _Appearance.stack([instances[position] for position in chunk])


@torch.no_grad()
def render_sprites(instances: Sequence[Instance], yaw: Tensor, pitch: Tensor, size: int = 48) -> Tensor:
    """Render a view of each instance as premultiplied RGBA (N, 4, size, size) in [0, 1]; yaw, pitch (N,) in radians."""
    rotation = view_rotation(yaw, pitch)
    sprites = torch.empty(len(instances), 4, size, size)
    for surface, chunk, appearance in _batches(instances, size):
        sprites[chunk] = _render_category(surface, appearance, rotation[chunk], size)
    return sprites


@torch.no_grad()
def material_shares(instances: Sequence[Instance], yaw: Tensor, pitch: Tensor, size: int = 24) -> Tensor:
    """The share (N, materials) of each material in a view of each instance, at size x size pixels."""
    rotation = view_rotation(yaw, pitch)
    shares = torch.zeros(len(instances), MATERIALS)
    for surface, chunk, appearance in _batches(instances, size):
        seen = _see(surface, appearance, rotation[chunk], size)
        rows = torch.tensor(chunk)[seen.view]
        shares.index_put_((rows, _materials(surface, seen, appearance)), seen.coverage, accumulate=True)
    return shares / shares.sum(1, keepdim=True)
