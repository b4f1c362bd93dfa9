"""Whether a concept has been learned: its pictures are nearer to the subject, and the class word means what it meant.

Pictures from the same prompts and noise are compared: with the concept, and with the class word alone. Intervals are
over prompts, for the pictures of one prompt resemble each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.scoring.metrics import Interval, bootstrap_interval

#: The share of the concept's gain in similarity that pictures of the class word may gain too: above one half they are
#: nearer to the concept's pictures than to what they were. Whatever changes weights changes them a little.
LARGEST_DRIFT = 0.5
#: The share of its prompt fidelity that the class word may lose.
LARGEST_LOSS = 0.1


@dataclass(frozen=True, kw_only=True)
class ArmScores:
    """The scores of some pictures: one for each prompt and seed, in the same order in all arms."""

    similarity: tuple[float, ...]
    fidelity: tuple[float, ...]

    def means(self) -> tuple[float, float]:
        """Mean similarity and fidelity."""
        return float(np.mean(self.similarity)), float(np.mean(self.fidelity))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict on a concept.

    Attributes:
        learned: Whether it may be used.
        sentence: Why, in one sentence.
        gain: Subject similarity with the concept minus that of the class word alone.
        drift: Subject similarity of the class word's pictures with the concept loaded, minus without; None if a concept
            changes no weights and the pictures are the same.
        loss: The same of prompt fidelity, without minus with.
    """

    learned: bool
    sentence: str
    gain: Interval
    drift: Interval | None = None
    loss: Interval | None = None


def judge_concept(
    prompts: Sequence[str], concept: ArmScores, word: ArmScores, drifted: ArmScores | None, *, unchanged: bool = True
) -> Verdict:
    """The verdict on a concept.

    Args:
        prompts: The prompt of each picture.
        concept: With the concept.
        word: With the class word alone, the concept not loaded.
        drifted: With the class word alone, the concept loaded; None for a concept that changes no weights.
        unchanged: For such a concept, whether the class word's pictures are the same with and without it.
    """
    if len(set(prompts)) == 1:  # then over pictures
        prompts = [str(number) for number, _ in enumerate(prompts)]
    gain = _difference(concept.similarity, word.similarity, prompts)
    drift = loss = None
    reasons = []
    if len(prompts) == 1:
        reasons.append("one picture does not show it: more of customize.scoring.seeds do")
    if gain.low <= 0:
        reasons.append(f"its pictures are not nearer to the subject than those of the class word ({_text(gain)})")
    if drifted is not None:
        drift = _difference(drifted.similarity, word.similarity, prompts)
        loss = _difference(word.fidelity, drifted.fidelity, prompts)
        if drift.low > 0 and drift.mean > LARGEST_DRIFT * max(gain.mean, 0.0):
            reasons.append(f"the class word alone paints the subject too ({_text(drift)})")
        if loss.low > 0 and loss.mean > LARGEST_LOSS * float(np.mean(word.fidelity)):
            reasons.append(f"pictures of the class word follow their prompts less ({_text(loss)})")
    elif not unchanged:
        reasons.append("pictures of the class word changed although no weight was trained")
    sentence = (
        "; ".join(reasons) or f"its pictures are nearer to the subject than those of the class word by {_text(gain)}"
    )
    return Verdict(learned=not reasons, sentence=sentence, gain=gain, drift=drift, loss=loss)


def _difference(first: Sequence[float], second: Sequence[float], prompts: Sequence[str]) -> Interval:
    return bootstrap_interval(np.subtract(first, second), prompts)


def _text(interval: Interval) -> str:
    return f"{interval.mean:.3f}, 95 % interval {interval.low:.3f} to {interval.high:.3f}"
