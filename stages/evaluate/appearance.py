"""Whether a picture has the reference's pattern and its two colours: the judge's answers on both are compared.

The two colours are a set: a picture with main and second colour exchanged has both. A solid object without an accent
has the main colour only, and then so must the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

from model.microworld.appearance import Appearance

ANSWER_NAMES = {"pattern": "Pattern", "colours": "Two colours", "pattern_and_colours": "Pattern and colours"}
ANSWERS = tuple(ANSWER_NAMES)


def agreement(pictures: Sequence[Appearance], reference: Appearance) -> dict[str, float]:
    """The share of pictures whose answers are the reference's, for each of `ANSWERS`.

    Raises:
        ValueError: There are no pictures.
    """
    if not pictures:
        raise ValueError("there are no pictures to compare with the reference")
    same = [(picture.pattern == reference.pattern, picture.colours == reference.colours) for picture in pictures]
    counts = (sum(pattern for pattern, _ in same), sum(colours for _, colours in same), sum(map(all, same)))
    return {answer: count / len(pictures) for answer, count in zip(ANSWERS, counts, strict=True)}
