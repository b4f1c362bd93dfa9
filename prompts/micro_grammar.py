"""The grammar of the micro world: only words of its tokenizer, and every sentence fits its text encoder."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from prompts.schema import PLACEHOLDER, Variation

MAX_WORDS = 12

BACKGROUNDS = (
    "on the beach", "on a sandy beach", "in the desert", "on a sand dune", "in the snow", "on a snowy field",
    "on the grass", "in a green meadow", "under the night sky", "at night", "on a city street", "on the road",
    "in the forest", "among the trees", "in the ocean", "in the water", "in front of a brick wall",
    "by a brick wall", "on a wooden floor", "on a wooden table",
)  # fmt: skip
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")
QUALITIES = ("striped", "spotted", "checkered", "shiny", "clean", "old", "new", "small", "large", "bright", "colorful")
NEIGHBOURS = ("ball", "box", "donut", "star", "mushroom", "mug", "bottle", "duck", "house", "robot", "hat", "car")
ACTIONS = ("leaning", "floating", "standing", "lying", "sitting", "moving", "swimming", "running", "driving")
RELATIONS = ("and a", "next to a", "near a", "with a")
STYLES = ("a picture of", "a rendering of", "a close view of", "this is", "there is")


#: What the objects of the micro world do, and where they belong.
HABITATS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "duck": (("swimming", "floating"), ("in the ocean", "in the water")),
    "car": (("driving", "moving"), ("on a city street", "on the road")),
    "rocket": (("floating", "moving"), ("under the night sky", "at night")),
    "star": (("floating", "moving"), ("under the night sky", "at night")),
    "mushroom": (("standing", "leaning"), ("in the forest", "among the trees")),
    "bear": (("running", "sitting"), ("in the forest", "among the trees")),
    "house": (("standing", "alone"), ("on a snowy field", "in a green meadow")),
    "robot": (("looking", "standing"), ("on a city street", "by a brick wall")),
}
TABLE = (("standing", "lying"), ("on a wooden table", "on a wooden floor"))


def sentences(variation: Variation, concept: str) -> Iterator[str]:
    """All sentences of one variation with at most `MAX_WORDS` words."""
    subject = f"{PLACEHOLDER} {concept}"
    if variation == "tailored":
        written = _tailored(subject, concept)
    else:
        written = (text for place in BACKGROUNDS for text in _sentences(variation, subject, concept, place))
    yield from (sentence for sentence in written if len(sentence.split()) <= MAX_WORDS)


def _tailored(subject: str, concept: str) -> Iterator[str]:
    actions, places = HABITATS.get(concept, TABLE)
    for action, place, colour, neighbour in itertools.product(actions, places, COLOURS, NEIGHBOURS):
        if neighbour != concept:
            article = "an" if colour == "orange" else "a"
            yield f"a {subject} {action} {place} near {article} {colour} {neighbour}"


def _sentences(variation: Variation, subject: str, concept: str, background: str) -> Iterator[str]:
    if variation == "background":
        yield f"a photo of a {subject} {background}"
        yield f"a {subject} {background}"
        yield from (f"a {time} day and a {subject} {background}" for time in ("sunny", "bright", "beautiful"))
    elif variation == "subject":
        for relation, colour, neighbour in itertools.product(RELATIONS, COLOURS, NEIGHBOURS):
            if neighbour != concept:
                article = "an" if colour == "orange" else "a"
                yield f"a {subject} {relation[:-1]}{article} {colour} {neighbour} {background}"
    elif variation == "action":
        yield from (f"a photo of a {subject} {action} {background}" for action in ACTIONS)
        yield from (f"a {subject} is {action} {background}" for action in ACTIONS)
    elif variation == "style":
        yield from (f"{style} a {subject} {background}" for style in STYLES)
    else:
        for quality in (*COLOURS, *QUALITIES):
            article = "an" if quality[0] in "aeio" else "a"
            yield f"a photo of {article} {quality} {subject} {background}"
