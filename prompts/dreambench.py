"""DreamBench's 25 prompts for objects and 25 for live subjects (Ruiz et al. 2023; google/dreambooth, CC BY 4.0).

`{word}` stands for the class word. The first ten prompts and the last five are the same in both lists. The benchmark's
file `prompts_and_classes.txt` has the class of each subject and both lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prompts.english.grammar import sense_of

CLASS_WORDS = (
    "backpack", "stuffed animal", "bowl", "can", "candle", "cat", "clock", "sneaker", "dog", "toy", "boot", "glasses",
    "cartoon", "teapot", "vase",
)  # fmt: skip
LISTING = "prompts_and_classes.txt"

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


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What a `prompts_and_classes.txt` says.

    Attributes:
        classes: The class word of each subject, by the name of the subject's folder.
        objects: The prompts for things, with `{word}`.
        live: The prompts for animals and people.
    """

    classes: Mapping[str, str]
    objects: tuple[str, ...] = OBJECT_PROMPTS
    live: tuple[str, ...] = LIVE_PROMPTS

    def prompts(self, word: str) -> tuple[str, ...]:
        """The prompts for a subject of this class."""
        return self.live if is_live(word) else self.objects


def dreambench_prompts(word: str) -> tuple[str, ...]:
    """DreamBench's prompts for a subject of this class."""
    return LIVE_PROMPTS if is_live(word) else OBJECT_PROMPTS


def is_live(word: str) -> bool:
    """Whether a class word names an animal or a person: "corgi", and not "bear plushie" or "stuffed animal"."""
    return sense_of(word) in ("animal", "person")


#: Its lines are "subject_name,class"; then come two lists in Python, 'a {0} {1} in the snow'.format(token, word).
_PROMPTS_BEGIN = re.compile(r"\W*(?:prompts|prompt_list|(?:live|object)\b.*prompts)\b", re.IGNORECASE)
_LIVE_BEGIN = re.compile(r"\W*live\b(?!.*,)", re.IGNORECASE)
_OBJECTS_BEGIN = re.compile(r"\W*objects?\b(?!.*,)", re.IGNORECASE)
_HEAD = re.compile(r"(?:subject|name|folder|subject[_ ]name),(?:class|word|class[_ ](?:name|word))$", re.IGNORECASE)
_TEXT = re.compile(r"""\s*f?(["'])(.+)\1\s*(?:\.format\(.*\))?\s*,?\s*$""")
_TOKEN_AND_WORD = re.compile(r"\{[^{}]*\}(?:\s+\{[^{}]*\})?")


def read_benchmark(text: str) -> Benchmark:
    """Read a `prompts_and_classes.txt`. A list that it lacks is DreamBench's."""
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if _PROMPTS_BEGIN.match(line)), len(lines))
    objects, live = _prompts(lines[start:])
    return Benchmark(
        classes=dict(_classes(lines[:start])), objects=objects or OBJECT_PROMPTS, live=live or LIVE_PROMPTS
    )


def _classes(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, comma, word = (part.strip().strip("\"'") for part in line.replace("\t", ",").partition(","))
        if comma and name and word and not name.startswith("#") and not _HEAD.match(f"{name},{word}"):
            yield name, " ".join(word.split())


def _prompts(lines: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found: tuple[list[str], list[str]] = ([], [])
    is_live_list = False
    for line in lines:
        text = _TEXT.match(line)
        if text is None:
            is_live_list = (is_live_list or bool(_LIVE_BEGIN.match(line))) and not _OBJECTS_BEGIN.match(line)
        elif _TOKEN_AND_WORD.search(text[2]):
            found[is_live_list].append(_TOKEN_AND_WORD.sub("{word}", text[2]))
    return tuple(found[0]), tuple(found[1])
