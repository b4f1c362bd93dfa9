"""Object categories of the micro world as signed-distance functions of four shape numbers in [0, 1).

A category maps points and shape numbers to its parts; a part is a distance field and its material.
All categories are bulky: legs and stems thinner than two pixels do not survive a 16 x 16 latent.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from model.microworld.sdf import Points, box, cylinder, ellipsoid, frustum, norm, sphere, star_prism, torus

BOUND = 1.15  # every category fits into the sphere of this radius
MATERIALS = 4  # rows of an instance's palette
MAIN, ACCENT, DARK, PATTERN = range(MATERIALS)

Parts = list[tuple[Tensor, int]]
Shape = tuple[Tensor, Tensor, Tensor, Tensor]
ShapeFunction = Callable[[Points, Shape], Parts]


def _between(number: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * number


def _ball(p: Points, q: Shape) -> Parts:
    return [(sphere(p, _between(q[0], 0.72, 0.88)), MAIN)]


def _box(p: Points, q: Shape) -> Parts:
    width, height, ribbon = _between(q[0], 0.46, 0.6), _between(q[1], 0.4, 0.56), _between(q[2], 0.1, 0.15)
    lid = box(p.moved(y=height), width + 0.04, 0.1, width + 0.04)
    along = box(p, ribbon, height + 0.12, width + 0.06)
    across = box(p, width + 0.06, height + 0.12, ribbon)
    return [(torch.minimum(box(p, width, height, width), lid), MAIN), (torch.minimum(along, across), ACCENT)]


def _donut(p: Points, q: Shape) -> Parts:
    ring, tube = _between(q[0], 0.5, 0.6), _between(q[1], 0.22, 0.3)
    p = Points(
        p.x, p.y * 0.6 + p.z * 0.8, -p.y * 0.8 + p.z * 0.6
    )  # leans towards the viewer, so that the hole is visible
    icing = torch.maximum(torus(p, ring, tube + 0.03), 0.02 - p.y)
    return [(torus(p, ring, tube), ACCENT), (icing, MAIN)]


def _star(p: Points, q: Shape) -> Parts:
    inner, depth = _between(q[0], 0.4, 0.52), _between(q[1], 0.16, 0.26)
    return [(star_prism(p, 5, 1.0, inner, depth) * 0.8, MAIN)]


def _mushroom(p: Points, q: Shape) -> Parts:
    radius, stem, height = _between(q[0], 0.68, 0.9), _between(q[1], 0.24, 0.34), _between(q[2], 0.6, 0.8)
    cap = torch.maximum(ellipsoid(p.moved(y=0.02), radius, height, radius), 0.02 - p.y) * 0.8
    return [(cap, MAIN), (frustum(p.moved(y=-0.4), stem * 1.2, stem, 0.48), ACCENT)]


def _mug(p: Points, q: Shape) -> Parts:
    radius, height = _between(q[0], 0.44, 0.54), _between(q[1], 0.54, 0.7)
    body = p.moved(x=-0.18)
    wall = torch.maximum(cylinder(body, radius, height), -cylinder(body.moved(y=0.15), radius - 0.08, height))
    grip = p.moved(x=radius - 0.14)
    handle = norm(norm(grip.x, grip.y * _between(q[2], 0.75, 1.0)) - 0.34, grip.z) - 0.1
    return [(wall, MAIN), (torch.maximum(handle, radius - 0.04 - norm(body.x, body.z)), ACCENT)]


def _bottle(p: Points, q: Shape) -> Parts:
    radius, neck = _between(q[0], 0.34, 0.44), _between(q[1], 0.12, 0.16)
    return [
        (cylinder(p.moved(y=-0.4), radius, 0.5, 0.05), MAIN),
        (frustum(p.moved(y=0.3), radius, neck, 0.2), MAIN),
        (cylinder(p.moved(y=0.6), neck, 0.14), MAIN),
        (cylinder(p.moved(y=0.82), neck + 0.05, 0.12), ACCENT),
    ]


def _duck(p: Points, q: Shape) -> Parts:
    body, head = _between(q[0], 0.44, 0.54), _between(q[1], 0.3, 0.38)
    eye = Points(p.x + 0.45, p.y - 0.45, p.z.abs() - head + 0.06)
    return [
        (ellipsoid(p.moved(x=0.05, y=-0.32), body * 1.45, body, body), MAIN),
        (sphere(p.moved(x=-0.35, y=0.38), head), MAIN),
        (ellipsoid(p.moved(x=0.8, y=-0.1), 0.25, 0.14, 0.2), MAIN),
        (ellipsoid(p.moved(x=-0.38 - head, y=0.34), 0.26, 0.11, 0.2), ACCENT),
        (sphere(eye.moved(y=0.06), 0.08), DARK),
    ]


def _house(p: Points, q: Shape) -> Parts:
    width, height, eaves = _between(q[0], 0.46, 0.58), _between(q[1], 0.34, 0.44), 0.12
    slope, base = p.x.abs() * 0.7 + (p.y - eaves) * 0.71 - width * 0.85, eaves - 0.05 - p.y
    roof = torch.maximum(torch.maximum(slope, -slope - 0.12), torch.maximum(base, p.z.abs() - width - 0.06)) * 0.9
    attic = torch.maximum(torch.maximum(slope + 0.06, base), p.z.abs() - width) * 0.9
    walls = torch.minimum(box(p.moved(y=eaves - height), width, height, width), attic)
    door = box(p.moved(y=eaves - 2 * height + 0.26, z=width), 0.15, 0.26, 0.03)
    return [(walls, MAIN), (roof, ACCENT), (door, DARK)]


def _robot(p: Points, q: Shape) -> Parts:
    torso, head = _between(q[0], 0.4, 0.5), _between(q[1], 0.28, 0.36)
    side = p.mirrored()
    return [
        (box(p.moved(y=-0.2), torso, 0.42, torso * 0.75), MAIN),
        (box(p.moved(y=0.5), head, 0.25, head * 0.85), ACCENT),
        (box(side.moved(x=torso + 0.13, y=-0.15), 0.11, 0.34, 0.13), MAIN),
        (box(side.moved(x=0.23, y=-0.8), 0.16, 0.22, 0.18), ACCENT),
        (sphere(side.moved(x=0.14, y=0.53, z=head * 0.85), 0.09), DARK),
    ]


def _hat(p: Points, q: Shape) -> Parts:
    radius, height = _between(q[0], 0.44, 0.54), _between(q[1], 0.42, 0.58)
    brim = cylinder(p.moved(y=-0.5), radius + _between(q[3], 0.32, 0.44), 0.07)
    crown = frustum(p.moved(y=height - 0.5), radius, radius * _between(q[2], 0.85, 1.15), height)
    return [(crown, MAIN), (brim, MAIN), (cylinder(p.moved(y=-0.34), radius * 1.06, 0.11), ACCENT)]


def _car(p: Points, q: Shape) -> Parts:
    height, cabin = _between(q[0], 0.22, 0.29), _between(q[1], 0.38, 0.5)
    wheel = torch.maximum(norm(p.x.abs() - 0.5, p.y + 0.36) - 0.25, p.z.abs() - 0.48)
    return [
        (box(p.moved(y=-0.12), 0.92, height, 0.44, 0.08), MAIN),
        (box(p.moved(x=-0.05, y=0.28), cabin, 0.26, 0.38, 0.08), ACCENT),
        (wheel, DARK),
    ]


def _bear(p: Points, q: Shape) -> Parts:
    body, head = _between(q[0], 0.4, 0.48), _between(q[1], 0.36, 0.42)
    side = p.mirrored()
    return [
        (ellipsoid(p.moved(y=-0.38), body, body * 1.1, body * 0.9), MAIN),
        (sphere(p.moved(y=0.32), head), MAIN),
        (sphere(side.moved(x=0.32, y=0.64), 0.17), MAIN),
        (sphere(side.moved(x=body, y=-0.22, z=0.1), 0.19), MAIN),
        (sphere(side.moved(x=0.28, y=-0.78, z=0.22), 0.2), MAIN),
        (sphere(p.moved(y=0.24, z=head - 0.02), 0.16), ACCENT),
        (ellipsoid(p.moved(y=-0.4, z=0.2), body * 0.6, body * 0.7, body * 0.9), ACCENT),
        (sphere(side.moved(x=0.14, y=0.42, z=head - 0.02), 0.07), DARK),
    ]


def _rocket(p: Points, q: Shape) -> Parts:
    radius, reach = _between(q[0], 0.32, 0.4), _between(q[1], 0.24, 0.36)
    low = p.moved(y=-0.6)
    fins = torch.minimum(box(low, radius + reach, 0.24, 0.08), box(low, 0.08, 0.24, radius + reach))
    fins = torch.maximum(fins, (norm(p.x, p.z) + (p.y + 0.2) * 0.9 - radius) * 0.7)
    return [
        (cylinder(p.moved(y=-0.15), radius, 0.55, 0.05), MAIN),
        (frustum(p.moved(y=0.66), radius, 0.02, 0.32), ACCENT),
        (fins, ACCENT),
        (sphere(p.moved(y=0.12, z=radius), 0.15), DARK),
    ]


SHAPES: dict[str, ShapeFunction] = {
    "ball": _ball,
    "box": _box,
    "donut": _donut,
    "star": _star,
    "mushroom": _mushroom,
    "mug": _mug,
    "bottle": _bottle,
    "duck": _duck,
    "house": _house,
    "robot": _robot,
    "hat": _hat,
    "car": _car,
    "bear": _bear,
    "rocket": _rocket,
}
CATEGORIES: tuple[str, ...] = tuple(SHAPES)
HELD_OUT_CATEGORIES: tuple[str, ...] = ("bear", "rocket")
TRAINED_CATEGORIES: tuple[str, ...] = tuple(name for name in CATEGORIES if name not in HELD_OUT_CATEGORIES)
