"""The pattern and the two colours of an object, as far as a view shows them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model.microworld.captions import PATTERN_WORDS
from model.microworld.instances import COLOUR_NAMES, PATTERNS, Instance, make_instance
from model.microworld.render import material_shares
from model.microworld.scenes import SceneObject
from model.microworld.shapes import ACCENT, PATTERN

PLAIN = PATTERN_WORDS["solid"]
PATTERN_NAMES: tuple[str, ...] = tuple(dict.fromkeys(PATTERN_WORDS.values()))
NO_COLOUR = "none"
SECOND_COLOUR_NAMES = (*COLOUR_NAMES, NO_COLOUR)
#: A material is visible if it covers this share of the object's pixels: a dip, for example, can lie above all of the
#: main parts, and an accent behind them.
VISIBLE_SHARE = 0.02


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """An object's pattern and colours in one view.

    Attributes:
        pattern: One of `PATTERN_NAMES`; plain if the view does not show the pattern.
        colour: One of `COLOUR_NAMES`, the main colour.
        second_colour: One of `SECOND_COLOUR_NAMES`: the pattern's colour, without a pattern that of the accent part,
            without either `NO_COLOUR`.
    """

    pattern: str
    colour: str
    second_colour: str

    @property
    def colours(self) -> frozenset[str]:
        """The two colours, in no order: on a checkered object either may cover more of a view."""
        return frozenset((self.colour, self.second_colour))


def visible_appearances(objects: Sequence[SceneObject]) -> list[Appearance]:
    """What the view of each object shows of its pattern and second colour."""
    instances = [make_instance(item.instance) for item in objects]
    yaw, pitch = torch.tensor([item.yaw for item in objects]), torch.tensor([item.pitch for item in objects])
    visible = (material_shares(instances, yaw, pitch) >= VISIBLE_SHARE).tolist()
    return [_appearance(instance, own) for instance, own in zip(instances, visible, strict=True)]


def _appearance(instance: Instance, visible: Sequence[bool]) -> Appearance:
    accent_colour = instance.accent_colour if visible[ACCENT] else NO_COLOUR
    return Appearance(
        pattern=PATTERN_WORDS[PATTERNS[instance.pattern]] if visible[PATTERN] else PLAIN,
        colour=instance.colour,
        second_colour=instance.pattern_colour if visible[PATTERN] else accent_colour,
    )
