"""Labels of pattern and second colour against rendered pixels: those that change with the colour of a material."""

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from model.microworld.appearance import (
    NO_COLOUR,
    PATTERN_NAMES,
    PLAIN,
    SECOND_COLOUR_NAMES,
    VISIBLE_SHARE,
    visible_appearances,
)
from model.microworld.captions import PATTERN_WORDS
from model.microworld.instances import PATTERNS, Instance, InstanceId, make_instance
from model.microworld.render import render_sprites
from model.microworld.scenes import Placement, SceneObject
from model.microworld.shapes import ACCENT, CATEGORIES, PATTERN

_PLACEMENT = Placement(scale=0.8, x=0.0, y=0.0, tilt=0.0, light=1.0)
_UNCLEAR = 0.012  # around the visible share, where the number of pixels depends on the resolution
_FIRST = [InstanceId(split="judge", category=category, index=index) for category in CATEGORIES for index in range(24)]
_VIEWS = [SceneObject(instance=name, yaw=0.4, pitch=0.3, placement=_PLACEMENT) for name in _FIRST]


def _changed_share(instances: list[Instance], material: int) -> Tensor:
    """The share (N,) of each object's pixels whose colour depends on the palette's row."""
    repainted = []
    for instance in instances:
        palette = instance.palette.copy()
        palette[material] = 1 - palette[material].round()
        repainted.append(dataclasses.replace(instance, palette=palette))
    yaw, pitch = torch.full((len(instances),), 0.4), torch.full((len(instances),), 0.3)
    before, after = render_sprites(instances, yaw, pitch), render_sprites(repainted, yaw, pitch)
    changed = ((before - after)[:, :3].abs().amax(1) > 0.02) * before[:, 3]
    return changed.sum((1, 2)) / before[:, 3].sum((1, 2))


def test_labels_say_what_the_pixels_show() -> None:
    instances = [make_instance(item.instance) for item in _VIEWS]
    pattern, accent = _changed_share(instances, PATTERN), _changed_share(instances, ACCENT)
    clear = ((pattern - VISIBLE_SHARE).abs() > _UNCLEAR) & ((accent - VISIBLE_SHARE).abs() > _UNCLEAR)
    assert clear.float().mean() > 0.85
    for item, own, found, row in zip(_VIEWS, instances, visible_appearances(_VIEWS), range(len(_VIEWS)), strict=True):
        if not clear[row]:
            continue
        word = PATTERN_WORDS[PATTERNS[own.pattern]] if pattern[row] > VISIBLE_SHARE else PLAIN
        accented = own.accent_colour if accent[row] > VISIBLE_SHARE else NO_COLOUR
        assert (item.instance, found.pattern) == (item.instance, word)
        assert found.second_colour == (own.pattern_colour if word != PLAIN else accented), item.instance


def test_every_label_occurs_and_differs_from_the_main_colour() -> None:
    found = visible_appearances(_VIEWS)
    assert {own.pattern for own in found} == set(PATTERN_NAMES)
    assert {own.second_colour for own in found} == set(SECOND_COLOUR_NAMES)
    assert all(
        own.second_colour != make_instance(item.instance).colour for own, item in zip(found, _VIEWS, strict=True)
    )
    assert all(own.pattern == PLAIN for own in found if own.second_colour == NO_COLOUR)


@pytest.mark.parametrize(
    ("category", "pattern", "seen"),
    [
        ("ball", "solid", PLAIN),
        ("ball", "bands", "striped"),
        ("star", "diagonals", "striped"),
        ("bear", "spots", "spotted"),
        ("rocket", "checks", "checkered"),
        ("bottle", "dip", "dipped"),
        ("car", "dip", PLAIN),  # the dip begins above the car's body
        ("robot", "dip", PLAIN),
    ],
)
def test_a_pattern_is_named_if_the_view_shows_it(category: str, pattern: str, seen: str) -> None:
    names = (InstanceId(split="judge", category=category, index=index) for index in itertools.count())
    name = next(name for name in names if PATTERNS[make_instance(name).pattern] == pattern)
    (found,) = visible_appearances([dataclasses.replace(_VIEWS[0], instance=name)])
    own = make_instance(name)
    has_accent = category not in ("ball", "star")
    expected = own.pattern_colour if seen != PLAIN else own.accent_colour if has_accent else NO_COLOUR
    assert (found.pattern, found.second_colour) == (seen, expected)


def test_labels_of_a_view_do_not_depend_on_the_other_views() -> None:
    assert visible_appearances(_VIEWS[5:9]) == visible_appearances(_VIEWS)[5:9]
