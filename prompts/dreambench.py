"""DreamBench's 25 prompts for objects and 25 for live subjects (Ruiz et al. 2023; google/dreambooth, CC BY 4.0).

`{word}` stands for the class word. The first ten prompts and the last five are the same in both lists.
"""

from __future__ import annotations

CLASS_WORDS = (
    "backpack", "stuffed animal", "bowl", "can", "candle", "cat", "clock", "sneaker", "dog", "toy", "boot", "glasses",
    "cartoon", "teapot", "vase",
)  # fmt: skip
LIVE_WORDS = frozenset({"cat", "dog"})  # the live classes of DreamBench

_BACKGROUNDS = (
    "a {word} in the jungle",
    "a {word} in the snow",
    "a {word} on the beach",
    "a {word} on a cobblestone street",
    "a {word} on top of pink fabric",
    "a {word} on top of a wooden floor",
    "a {word} with a city in the background",
    "a {word} with a mountain in the background",
    "a {word} with a blue house in the background",
    "a {word} on top of a purple rug in a forest",
)
_PROPERTIES = ("a red {word}", "a purple {word}", "a shiny {word}", "a wet {word}", "a cube shaped {word}")

OBJECT_PROMPTS = (
    *_BACKGROUNDS,
    "a {word} with a wheat field in the background",
    "a {word} with a tree and autumn leaves in the background",
    "a {word} with the Eiffel Tower in the background",
    "a {word} floating on top of water",
    "a {word} floating in an ocean of milk",
    "a {word} on top of green grass with sunflowers around it",
    "a {word} on top of a mirror",
    "a {word} on top of the sidewalk in a crowded street",
    "a {word} on top of a dirt road",
    "a {word} on top of a white rug",
    *_PROPERTIES,
)
LIVE_PROMPTS = (
    *_BACKGROUNDS,
    "a {word} wearing a red hat",
    "a {word} wearing a santa hat",
    "a {word} wearing a rainbow scarf",
    "a {word} wearing a black top hat and a monocle",
    "a {word} in a chef outfit",
    "a {word} in a firefighter outfit",
    "a {word} in a police outfit",
    "a {word} wearing pink glasses",
    "a {word} wearing a yellow shirt",
    "a {word} in a purple wizard outfit",
    *_PROPERTIES,
)


def dreambench_prompts(word: str) -> tuple[str, ...]:
    """DreamBench's prompts for a subject of this class."""
    return LIVE_PROMPTS if word in LIVE_WORDS else OBJECT_PROMPTS
