"""The word of a prompt that a picture stands for, where nobody has named it: the one that CLIP finds nearest."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import permutations

from PIL import Image

from model.painting.request import RequestFieldError
from model.pictures.tensors import to_tensor
from model.scoring.metrics import ClipScorer

_WITHOUT_SUBJECT = """
    a an the this that these those my your his her its our their some any one two three many and or but with without
    of to from side front back top bottom next is are was were be being has have had do does as like while for very
    photo photograph picture image painting drawing sketch render illustration view shot close closeup up portrait
    style background black white red green blue yellow orange purple pink brown grey gray cyan golden silver big
    small large little old new beautiful cute sitting standing lying running wearing holding made there here
"""
_BEFORE_A_PLACE = """
    in on at by into onto over under above below near behind between among through around across against inside
    outside during before
"""
#: Words of prompts that no picture of a subject stands for.
_OTHERS = frozenset(_WITHOUT_SUBJECT.split())
#: What follows says where something is, up to a word of `_AFTER_PLACE`.
_BEFORE_PLACE = frozenset(_BEFORE_A_PLACE.split())
_AFTER_PLACE = frozenset({"and", "with", "or", "beside", "wearing", "holding", ","})
_WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*|,")
_MOST_PICTURES = 4  # whose words are found together: the assignments are tried one by one


def possible_words(prompt: str, taken: Collection[str] = (), *, pictures: int = 1) -> list[str]:
    """The words of a prompt that pictures may stand for, in their order.

    Those that say where something is ("a mug in the *snow*") are left out if enough others remain.

    Args:
        prompt: What to paint.
        taken: Words and placeholders that stand for something else.
        pictures: That need a word.
    """
    used = {word.casefold() for phrase in taken for word in _WORD.findall(phrase)}
    is_place = False
    found: dict[str, bool] = {}
    for word in _WORD.findall(prompt):
        key = word.casefold()
        is_place = key in _BEFORE_PLACE or (is_place and key not in _AFTER_PLACE)
        if key not in used | _OTHERS | _BEFORE_PLACE | _AFTER_PLACE:
            found.setdefault(word, is_place)
    outside = [word for word, is_place in found.items() if not is_place]
    return outside if len(outside) >= pictures else list(found)


class WordFinder:
    """Finds words with a CLIP.

    Args:
        clip: Of any text-image training that knows the words.
    """

    def __init__(self, clip: ClipScorer) -> None:
        self._clip = clip

    def find(self, prompt: str, pictures: Sequence[Image.Image], taken: Collection[str] = ()) -> list[str]:
        """A word for each picture, every word once: those with the highest similarities in all.

        Args:
            prompt: What to paint.
            pictures: RGB.
            taken: Words and placeholders that stand for something else.

        Raises:
            RequestFieldError: There are fewer possible words than pictures, or too many pictures.
        """
        words = possible_words(prompt, taken, pictures=len(pictures))
        if len(pictures) > min(_MOST_PICTURES, len(words)):
            raise RequestFieldError("word", f"the words that {len(pictures)} pictures stand for cannot be found.")
        embedded = self._clip.embed_prompts([f"a photo of a {word}" for word in words])
        similarities = [self._clip.embed_subjects(to_tensor(one)[None])[0] @ embedded.T for one in pictures]
        choices = permutations(range(len(words)), len(pictures))
        best = max(
            choices,
            key=lambda choice: sum(float(own[word]) for own, word in zip(similarities, choice, strict=True)),
        )
        return [words[word] for word in best]
