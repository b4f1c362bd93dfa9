"""A subject in the place of another word: its words, scores and table."""

from __future__ import annotations

import pytest

from model.micro_sd.weights import WEIGHTS_FOLDER
from model.microworld.shapes import TRAINED_CATEGORIES
from model.pictures.decoding import load_picture
from model.scoring.metrics import JudgeScorer
from tests.benchmarks.another_word import ARMS, SCORES, Arm, other_word, prompts_with, scores_of, table
from tests.benchmarks.support.concept_training import AlbumSubject
from tests.support.subject_folder import png


def test_the_other_word_is_never_the_subject_s_own() -> None:
    assert all(other_word(word) != word for word in TRAINED_CATEGORIES)
    assert {other_word(word) for word in TRAINED_CATEGORIES} == set(TRAINED_CATEGORIES)


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.label)
def test_the_prompts_name_the_arm_s_word(arm: Arm) -> None:
    subject = AlbumSubject(name="a mug", word="mug", album=(), views=())
    noun = arm.noun(subject)
    assert noun in {"mug", "toy", other_word("mug")}
    assert all(f"a photo of a {noun} " in prompt for prompt in prompts_with(noun))


def test_a_view_of_the_subject_is_its_category_and_colour() -> None:
    """Of pictures, the first view has its own colour and category, whatever these are."""
    judge = JudgeScorer.from_pretrained(WEIGHTS_FOLDER / "judge")
    views = tuple(png(number) for number in range(3))
    subject = AlbumSubject(name="a mug", word="mug", album=(), views=views)
    rows = scores_of(judge, subject, [load_picture(views[0])] * 10)
    assert [set(row) for row in rows] == [{*SCORES, "subject_name"}] * 10
    assert all(row["colour"] == 1 for row in rows)
    assert all(row["word"] + row["subject"] <= 1 for row in rows)


def test_the_last_line_is_the_gain_of_the_reference() -> None:
    results = {
        arm.label: [dict.fromkeys(SCORES, 0.5 if arm.reference else 0.25) | {"subject_name": str(n)} for n in range(3)]
        for arm in ARMS
    }
    lines = table(results).splitlines()
    assert len(lines) == len(ARMS) + 3
    assert lines[-1].count("+0.25 (+0.25 to +0.25)") == len(SCORES)
