"""Signed-distance primitives of the micro world, after I. Quilez, "Distance functions".

Every primitive takes the coordinates of R points as three tensors (R,) and sizes that are floats or tensors (R,), and
returns the signed distance (R,), negative inside. World units: an object fits into a sphere of radius `BOUND`;
the y axis points up. Distances of non-linearly scaled solids are lower bounds, which sphere tracing tolerates.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

Size = Tensor | float


class Points(NamedTuple):
    """Coordinates of R points, each (R,)."""

    x: Tensor
    y: Tensor
    z: Tensor

    def moved(self, x: Size = 0.0, y: Size = 0.0, z: Size = 0.0) -> "Points":
        """The points in a frame whose origin lies at (x, y, z)."""
        return Points(self.x - x, self.y - y, self.z - z)

    def mirrored(self) -> "Points":
        """Fold the left half space onto the right one: a part that is modelled once appears on both sides."""
        return Points(self.x.abs(), self.y, self.z)


def norm(*components: Tensor) -> Tensor:
    """Euclidean length; the small constant keeps it differentiable at zero."""
    total = components[0] * components[0]
    for component in components[1:]:
        total = total + component * component
    return (total + 1e-12).sqrt()


def sphere(p: Points, radius: Size) -> Tensor:
    """Sphere around the origin."""
    return norm(*p) - radius


def ellipsoid(p: Points, a: Size, b: Size, c: Size) -> Tensor:
    """First-order distance bound of the ellipsoid with half axes a, b, c."""
    k0 = norm(p.x / a, p.y / b, p.z / c)
    k1 = norm(p.x / (a * a), p.y / (b * b), p.z / (c * c))
    return k0 * (k0 - 1) / k1


def box(p: Points, a: Size, b: Size, c: Size, rounding: float = 0.03) -> Tensor:
    """Box with half sizes a, b, c and rounded edges."""
    dx, dy, dz = p.x.abs() - a + rounding, p.y.abs() - b + rounding, p.z.abs() - c + rounding
    outside = norm(dx.clamp(min=0), dy.clamp(min=0), dz.clamp(min=0))
    return outside + torch.maximum(torch.maximum(dx, dy), dz).clamp(max=0) - rounding


def cylinder(p: Points, radius: Size, half_height: Size, rounding: float = 0.02) -> Tensor:
    """Upright cylinder with rounded rims."""
    dr, dy = norm(p.x, p.z) - radius + rounding, p.y.abs() - half_height + rounding
    return norm(dr.clamp(min=0), dy.clamp(min=0)) + torch.maximum(dr, dy).clamp(max=0) - rounding


def frustum(p: Points, bottom: Tensor, top: Size, half_height: Size) -> Tensor:
    """Upright cone frustum with the given bottom and top radii."""
    radius = bottom + (top - bottom) * ((p.y / half_height + 1) / 2).clamp(0, 1)
    slope = (bottom - top) / (2 * half_height)
    return torch.maximum((norm(p.x, p.z) - radius) / (1 + slope * slope).sqrt(), p.y.abs() - half_height)


def torus(p: Points, ring: Size, tube: Size) -> Tensor:
    """Torus around the y axis."""
    return norm(norm(p.x, p.z) - ring, p.y) - tube


def star_prism(p: Points, tips: int, outer: float, inner: Tensor, half_depth: Size) -> Tensor:
    """Star in the x-y plane with `tips` tips, extruded along z."""
    sector = math.pi / tips
    angle = (torch.remainder(torch.atan2(p.x, p.y), 2 * sector) - sector).abs()
    radius = norm(p.x, p.y)
    px, py = radius * torch.cos(sector - angle), radius * torch.sin(sector - angle)
    ex, ey = inner * math.cos(sector) - outer, inner * math.sin(sector)
    flat = ((px - outer) * ey - py * ex) / norm(ex, ey)
    return torch.maximum(flat, p.z.abs() - half_depth)
