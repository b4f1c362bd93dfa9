"""Prompts in English for any class word, without a language model: thousands of different ones of each kind.

A sentence is drawn from patterns; the class word decides the article, the number and which actions and properties
suit: animals, people and things have their own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

from prompts.english import contexts, senses
from prompts.english.nouns import Number, article, number_of
from prompts.english.senses import Sense
from prompts.english.tailored import TAILORED
from prompts.schema import PLACEHOLDER, Variation

#: What stands before the placeholder, besides the article.
_DETERMINERS: dict[Number, str] = {"singular": "", "pair": "pair of ", "plural": "some ", "mass": "some "}


def sense_of(concept: str) -> Sense:
    """What a class word means, by its last word; "thing" if it is not known."""
    *before, head = concept.casefold().split(" of ")[0].split() or [""]
    if set(before) & senses.THING_MAKERS:
        return "thing"
    names = {head, head.removesuffix("s")}
    return next((sense for sense, known in senses.SENSES.items() if names & known), "thing")


def sentences(variation: Variation, concept: str, rng: random.Random) -> Iterator[str]:
    """Sentences of one variation without end, drawn at random; some come more than once."""
    write = {
        "background": _background,
        "subject": _subject,
        "action": _action,
        "style": _style,
        "property": _property,
        "tailored": _tailored,
    }[variation]
    while True:
        yield write(concept, rng)


def subject_phrase(concept: str, adjective: str = "") -> str:
    """The class word behind the placeholder and its determiner: "a rusty [v] teapot", "a pair of [v] boots"."""
    number = number_of(concept)
    named = f"{PLACEHOLDER} {concept}"
    if number in ("plural", "mass"):
        return " ".join(filter(None, [_DETERMINERS[number].strip(), adjective, named]))
    phrase = f"{_DETERMINERS[number]}{named}"
    return article(f"{adjective} {phrase}") if adjective else f"a {phrase}"  # "[v]" is spoken as "vee"


def _background(concept: str, rng: random.Random) -> str:
    frame = rng.choice(contexts.FRAMES).format(x=subject_phrase(concept))
    return f"{frame} {rng.choice(contexts.PLACES)} {rng.choice((*contexts.TIMES, *contexts.DETAILS))}"


def _subject(concept: str, rng: random.Random) -> str:
    subject, neighbour = subject_phrase(concept), rng.choice([n for n in contexts.NEIGHBOURS if concept not in n])
    relation, place = rng.choice(contexts.RELATIONS), rng.choice(contexts.PLACES)
    first, second = rng.sample([subject, neighbour], 2)
    return f"{first} {relation} {second} {place}"


def _action(concept: str, rng: random.Random) -> str:
    action = rng.choice(_suiting(senses.ACTIONS, concept)).format(x=subject_phrase(concept))
    return f"{action} {rng.choice(contexts.PLACES)}{rng.choice(('', *(f' {time}' for time in contexts.TIMES)))}"


def _style(concept: str, rng: random.Random) -> str:
    style = rng.choice(contexts.STYLES).format(x=subject_phrase(concept))
    return f"{style} {rng.choice((*contexts.PLACES, *contexts.TIMES))}, {rng.choice(contexts.MOODS)}"


def _property(concept: str, rng: random.Random) -> str:
    adjective = rng.choice((*contexts.COLOURS, *_suiting(senses.QUALITIES, concept)))
    addition = rng.choice(_suiting(senses.ADDITIONS, concept))
    return f"{subject_phrase(concept, adjective)} {addition} {rng.choice(contexts.PLACES)}"


def _tailored(concept: str, rng: random.Random) -> str:
    context = rng.choice(TAILORED[sense_of(concept)]).format(x=subject_phrase(concept))
    return f"{context}{rng.choice(('', *(f' {time}' for time in contexts.TIMES)))}"


def _suiting(lists: Mapping[Sense, Sequence[str]], concept: str) -> Sequence[str]:
    return lists.get(sense_of(concept), lists["thing"])
