"""Prompt sets without a language model: sentences of a small grammar, in a fixed random order.

It uses only words of the micro world's tokenizer, and every sentence fits its text encoder. Used when no endpoint is
configured; the dataset records the writer "grammar".
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from prompts.schema import PLACEHOLDER, VARIATIONS, RichPrompt, Variation

WRITER = "grammar"
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


def grammar_prompts(concept: str, count: int, seed: int) -> list[RichPrompt]:
    """`count` different prompts for `concept`, alternating between the variations; the same for the same arguments.

    Raises:
        ValueError: The grammar has fewer sentences.
    """
    rng = random.Random(f"{seed}/{concept}")
    queues: dict[Variation, list[str]] = {}
    for variation in VARIATIONS:
        queues[variation] = sorted(set(sentences(variation, concept)))
        rng.shuffle(queues[variation])
    written: list[RichPrompt] = []
    for variation in itertools.cycle(VARIATIONS):
        if len(written) == count:
            return written
        if not any(queues.values()):
            raise ValueError(f"the grammar has only {len(written)} prompts for {concept!r}, not {count}")
        if queues[variation]:
            written.append(RichPrompt(prompt=queues[variation].pop(), variation=variation))
    return written


def sentences(variation: Variation, concept: str) -> Iterator[str]:
    """All sentences of one variation with at most `MAX_WORDS` words."""
    subject = f"{PLACEHOLDER} {concept}"
    for background in BACKGROUNDS:
        for sentence in _sentences(variation, subject, concept, background):
            if len(sentence.split()) <= MAX_WORDS:
                yield sentence


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
