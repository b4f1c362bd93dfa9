"""Captions of scenes, and the closed vocabulary of captions and prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from model.microworld.instances import COLOUR_NAMES
from model.microworld.shapes import CATEGORIES, TRAINED_CATEGORIES

GENERIC_NOUN = "toy"
MAX_WORDS = 14  # model_max_length 16, less the begin and end tokens

BACKGROUND_PHRASES: dict[str, tuple[str, ...]] = {  # the first phrase is the most frequent
    "beach": ("on the beach", "on a sandy beach"),
    "desert": ("in the desert", "on a sand dune"),
    "snow": ("in the snow", "on a snowy field"),
    "grass": ("on the grass", "in a green meadow"),
    "night": ("under the night sky", "at night"),
    "street": ("on a city street", "on the road"),
    "forest": ("in the forest", "among the trees"),
    "ocean": ("in the ocean", "in the water"),
    "brick": ("in front of a brick wall", "by a brick wall"),
    "wood": ("on a wooden floor", "on a wooden table"),
}
PATTERN_WORDS = {
    "solid": "plain",
    "bands": "striped",
    "diagonals": "striped",
    "spots": "spotted",
    "checks": "checkered",
    "dip": "dipped",
}
NOUNS = (*CATEGORIES, GENERIC_NOUN)
_SIZE_WORDS = ("small", "large")
_POSE_WORDS = ("leaning", "floating", "standing")
_FILLERS = ("nice", "good", "cool", "new", "old", "clean", "bright", "sunny", "beautiful", "cute", "little", "shiny")
_TEMPLATES = ("a photo of {}", "a picture of {}", "{}", "there is {}", "a close view of {}", "a rendering of {}")
_TEMPLATE_SHARES = (0.74, 0.08, 0.08, 0.04, 0.03, 0.03)
_WEB_KINDS = ("no background", "no neighbour", "noun only", "wrong word", "too long")
_WEB_KIND_SHARES = (0.6, 0.1, 0.1, 0.1, 0.1)
_OTHER_WORDS = (
    "an and with two the next to near left right side front back one my your this that its alone background "
    "day light dark lying sitting moving driving swimming running looking colorful object thing"
)

_LONG_TAIL = (*_FILLERS, *_OTHER_WORDS.split())


def _vocabulary() -> tuple[str, ...]:
    texts = [*_TEMPLATES, *(phrase for phrases in BACKGROUND_PHRASES.values() for phrase in phrases), _OTHER_WORDS]
    words = [word for text in texts for word in text.replace("{}", "").split()]
    words += [*NOUNS, *COLOUR_NAMES, *PATTERN_WORDS.values(), *_SIZE_WORDS, *_POSE_WORDS, *_FILLERS]
    return tuple(dict.fromkeys(words))


VOCABULARY: tuple[str, ...] = _vocabulary()


@dataclass(frozen=True, kw_only=True)
class CaptionShares:
    """How often a caption mentions each property, and how often captions are like those of the web."""

    web_like: float = 0.0  # of all captions; the other shares are of the good ones
    generic_noun: float = 0.12
    colour: float = 0.3
    pattern: float = 0.1
    size: float = 0.06
    pose: float = 0.06
    filler: float = 0.08
    usual_phrase: float = 0.8


@dataclass(frozen=True, kw_only=True)
class CaptionFacts:
    """The facts of a scene that its caption may mention."""

    category: str
    colour: str
    pattern: str
    background: str
    size_word: str | None  # None for an object of medium size
    pose_word: str
    neighbour: str | None  # category of a second object
    neighbour_is_left: bool = False  # captions name objects from left to right


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption, and which facts it mentions."""

    text: str
    noun: str  # the word that names the subject
    names_colour: bool


def article(phrase: str) -> str:
    """Put the indefinite article before a phrase."""
    return f"{'an' if phrase[0] in 'aeio' else 'a'} {phrase}"


def plain_caption(noun: str, background: str, colour: str | None = None, neighbour: str | None = None) -> str:
    """The most frequent form: "a photo of a red robot and a mug on the beach"."""
    objects = [article(f"{colour} {noun}" if colour else noun), *([article(neighbour)] if neighbour else [])]
    return compose_caption(objects, "", BACKGROUND_PHRASES[background][0], _TEMPLATES[0])


def compose_caption(objects: Sequence[str], pose: str, background: str, template: str) -> str:
    """Join the parts; drop the template if the sentence would not fit the text encoder."""
    body = " ".join(part for part in (" and ".join(objects), pose, background) if part)
    sentence = template.format(body)
    return sentence if len(sentence.split()) <= MAX_WORDS else body


def without_background(caption: str) -> str:
    """Remove the background phrase from a caption."""
    phrases = (phrase for phrases in BACKGROUND_PHRASES.values() for phrase in phrases)
    return next((caption.removesuffix(f" {phrase}") for phrase in phrases if caption.endswith(f" {phrase}")), caption)


def write_caption(facts: CaptionFacts, rng: np.random.Generator, shares: CaptionShares) -> Caption:
    """Draw one of the ways to describe a scene."""
    if shares.web_like and rng.random() < shares.web_like:
        return _write_web_caption(facts, rng, shares)
    return _write_good_caption(facts, rng, shares)


def _write_web_caption(facts: CaptionFacts, rng: np.random.Generator, shares: CaptionShares) -> Caption:
    """A caption that leaves something out, is wrong in one word, or is longer than the text encoder reads."""
    match str(rng.choice(_WEB_KINDS, p=_WEB_KIND_SHARES)):
        case "no background":
            caption = _write_good_caption(facts, rng, shares)
            return replace(caption, text=without_background(caption.text))
        case "no neighbour":
            return _write_good_caption(replace(facts, neighbour=None), rng, shares)
        case "noun only":
            text = _TEMPLATES[0].format(article(facts.category))
            return Caption(text=text, noun=facts.category, names_colour=False)
        case "wrong word":
            return replace(_write_good_caption(_with_a_wrong_fact(facts, rng), rng, shares), names_colour=False)
        case _:
            caption = _write_good_caption(facts, rng, shares)
            return replace(caption, text=" ".join([caption.text, *rng.choice(_LONG_TAIL, MAX_WORDS)]))


def _with_a_wrong_fact(facts: CaptionFacts, rng: np.random.Generator) -> CaptionFacts:
    """Another background, colour or category than the scene has."""
    choices: dict[str, Sequence[str]] = {
        "background": tuple(BACKGROUND_PHRASES),
        "colour": COLOUR_NAMES,
        "category": TRAINED_CATEGORIES,
    }
    fact = str(rng.choice(list(choices)))
    wrong: dict[str, Any] = {fact: str(rng.choice([name for name in choices[fact] if name != getattr(facts, fact)]))}
    return replace(facts, **wrong)


def _write_good_caption(facts: CaptionFacts, rng: np.random.Generator, shares: CaptionShares) -> Caption:
    """A caption that is true, names the background and the second object, and fits the text encoder."""
    generic, colour, pattern, size, pose, filler, usual = rng.random(7)
    noun = GENERIC_NOUN if generic < shares.generic_noun else facts.category
    names_colour = bool(colour < shares.colour)
    alone = facts.neighbour is None  # a caption of two objects has no room for more words
    adjectives = [
        str(rng.choice(_FILLERS)) if alone and filler < shares.filler else None,
        facts.size_word if alone and size < shares.size else None,
        facts.colour if names_colour else None,
        PATTERN_WORDS[facts.pattern] if pattern < shares.pattern else None,
    ]
    phrases = BACKGROUND_PHRASES[facts.background]
    background = phrases[0] if usual < shares.usual_phrase else str(rng.choice(phrases))
    template = str(rng.choice(_TEMPLATES, p=_TEMPLATE_SHARES))
    subject = article(" ".join([*filter(None, adjectives), noun]))
    objects = [subject, *([article(facts.neighbour)] if facts.neighbour else [])]
    if facts.neighbour_is_left:
        objects.reverse()
    pose_word = facts.pose_word if alone and pose < shares.pose else ""
    text = compose_caption(objects, pose_word, background, template)
    return Caption(text=text, noun=noun, names_colour=names_colour)
