"""Common nouns for the auxiliary prompt (Customized Generation Reimagined, Sec. 4.5).

A noun that is likely in the prompt's context gives the model a context that it can paint well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

#: Words of a context -> nouns that are likely there, the likeliest first.
NOUNS_BY_CONTEXT: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("painted painting drawn drawing graffiti mural sketch watercolor cartoon poster", ("cat", "dog", "house", "car")),
    ("ocean sea water lake river pool underwater swimming floating waves", ("duck", "boat", "dog")),
    ("beach shore coast sand sandy desert dune dunes", ("dog", "car", "ball")),
    ("snow snowy ice icy winter mountain mountains ski skiing", ("dog", "house", "car")),
    ("street road city town square highway bridge tower downtown market", ("car", "dog", "man")),
    ("grass meadow field garden park lawn flowers picnic", ("dog", "ball", "duck")),
    ("forest jungle woods trees tree autumn leaves", ("dog", "house", "mushroom")),
    ("night sky moon space stars clouds galaxy planet", ("cat", "house", "car")),
    ("wall brick bricks alley", ("cat", "car", "box")),
    ("table desk floor shelf kitchen wooden plate bowl", ("cat", "mug", "bottle")),
    ("bed sofa couch chair room pillow blanket carpet window", ("cat", "dog", "box")),
    ("wearing dressed costume outfit suit shirt glasses hat scarf", ("dog", "cat", "man", "duck")),
    ("wood stone marble gold golden glass crystal lego clay statue carved sculpture made", ("cat", "car", "house")),
)
#: For any other context.
COMMON_NOUNS = ("dog", "cat", "car", "house", "ball", "box", "mug", "robot", "duck")


def likely_nouns(context: str) -> Iterator[str]:
    """Nouns for a context, the likeliest first: those of the contexts that it names, then common ones.

    Args:
        context: a prompt without its concept.
    """
    words = set(re.findall(r"\w+", context.lower()))
    for names, nouns in NOUNS_BY_CONTEXT:
        if words & set(names.split()):
            yield from nouns
    yield from COMMON_NOUNS
