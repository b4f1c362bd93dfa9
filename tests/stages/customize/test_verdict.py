"""Whether a concept has learned: the verdict on scores that are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from stages.customize.verdict import ArmScores, judge_concept

PROMPTS = tuple(f"prompt {number}" for number in range(10) for _ in range(2))


def arm(similarity: float, fidelity: float = 0.9, noise: float = 0.05, seed: int = 0) -> ArmScores:
    """Scores with these means."""
    random = np.random.default_rng(seed).normal(0, noise, (2, len(PROMPTS)))
    values = np.array([[similarity], [fidelity]]) + random - random.mean(1, keepdims=True)
    return ArmScores(similarity=tuple(values[0]), fidelity=tuple(values[1]))


WORD = arm(0.3, seed=1)

#: With the concept, with the class word after the concept is loaded, and what must be said (nothing: it has learned).
CASES: dict[str, tuple[ArmScores, ArmScores | None, Sequence[str]]] = {
    "clearly nearer": (arm(0.7), None, ()),
    "a little nearer": (arm(0.35, noise=0.01), None, ()),
    "a small gain within the noise": (arm(0.31, noise=0.2), None, ("not nearer",)),
    "no gain": (WORD, None, ("not nearer",)),
    "farther away": (arm(0.1), None, ("not nearer",)),
    "negative similarities": (arm(-0.2), None, ("not nearer",)),
    "less prompt fidelity of the concept is its price": (arm(0.7, 0.4), None, ()),
    "weights, and the class word unchanged": (arm(0.7), WORD, ()),
    "the class word loses similarity": (arm(0.7), arm(0.2), ()),
    "the class word drifts a little": (arm(0.7), arm(0.33, noise=0.01), ()),
    "the class word has become the subject": (arm(0.7), arm(0.7), ("class word alone paints the subject",)),
    "the class word drifts by more than half the gain": (arm(0.7), arm(0.55), ("class word alone paints the subject",)),
    "the class word drifts by less than half the gain": (arm(0.7), arm(0.45), ()),
    "the class word drifts within the noise": (arm(0.7), arm(0.31, noise=0.2, seed=3), ()),
    "no gain, and drift": (arm(0.3), arm(0.4), ("not nearer", "class word alone paints the subject")),
    "the class word loses fidelity": (arm(0.7), arm(0.3, 0.5), ("follow their prompts less",)),
    "the class word loses little fidelity": (arm(0.7), arm(0.3, 0.87, noise=0.01), ()),
    "the class word gains fidelity": (arm(0.7), arm(0.3, 0.99), ()),
    "drift and loss": (arm(0.7), arm(0.6, 0.4), ("paints the subject", "follow their prompts less")),
    "everything is wrong": (arm(0.2), arm(0.5, 0.2), ("not nearer", "paints the subject", "follow their prompts less")),
    "certain scores": (arm(0.7, noise=0), arm(0.3, noise=0), ()),
}


@pytest.mark.parametrize(("concept", "drifted", "said"), CASES.values(), ids=CASES)
def test_the_verdict(concept: ArmScores, drifted: ArmScores | None, said: Sequence[str]) -> None:
    verdict = judge_concept(PROMPTS, concept, WORD, drifted)
    assert verdict.learned is not bool(said)
    assert all(words in verdict.sentence for words in said)
    assert verdict.sentence.count(";") == max(0, len(said) - 1)
    assert "\n" not in verdict.sentence
    assert verdict.gain.low <= verdict.gain.mean <= verdict.gain.high
    assert (verdict.drift is None) == (drifted is None)


def test_a_concept_without_weights_must_leave_the_class_word_as_it_is() -> None:
    assert judge_concept(PROMPTS, arm(0.7), WORD, None, unchanged=True).learned
    verdict = judge_concept(PROMPTS, arm(0.7), WORD, None, unchanged=False)
    assert not verdict.learned
    assert "no weight was trained" in verdict.sentence


def test_pictures_of_the_only_prompt_count_each_and_one_picture_is_too_few() -> None:
    def one(*similarity: float) -> ArmScores:
        return ArmScores(similarity=similarity, fidelity=(0.9,) * len(similarity))

    assert judge_concept(["one"] * 3, one(0.7, 0.8, 0.7), one(0.3, 0.3, 0.2), None).learned
    assert not judge_concept(["one"] * 3, one(0.9, 0.2, 0.2), one(0.3, 0.3, 0.3), None).learned
    assert not judge_concept(["one"], one(0.7), one(0.3), None).learned


def test_pictures_of_one_prompt_count_as_one() -> None:
    """A gain in a single prompt, however many pictures it has, is no gain."""
    many = ("one",) * 19 + ("other",)
    word = ArmScores(similarity=(0.3,) * 20, fidelity=(0.9,) * 20)
    concept = ArmScores(similarity=(0.8,) * 19 + (0.1,), fidelity=(0.9,) * 20)
    assert not judge_concept(many, concept, word, None).learned
