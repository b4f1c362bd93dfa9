"""Pattern and colours: comparison of two pictures, averages by hand, and the report's table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.microworld.appearance import NO_COLOUR, Appearance
from model.pictures.decoding import load_picture
from model.pictures.tensors import to_tensor
from model.scoring.metrics import JudgeScorer
from stages.evaluate.appearance import ANSWERS, agreement
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.report_arms import describe_appearance
from stages.evaluate.scorer import Scorer
from stages.evaluate.summary import findings, summarize
from tests.support.score_rows import a_row
from tests.support.subject_folder import png


def an_appearance(pattern: str, colour: str, second: str = NO_COLOUR) -> Appearance:
    return Appearance(pattern=pattern, colour=colour, second_colour=second)


STRIPED = an_appearance("striped", "red", "white")


@pytest.mark.parametrize(
    ("picture", "reference", "pattern", "colours"),
    [
        pytest.param(STRIPED, STRIPED, 1, 1, id="same"),
        pytest.param(an_appearance("striped", "white", "red"), STRIPED, 1, 1, id="exchanged colours"),
        pytest.param(an_appearance("spotted", "red", "white"), STRIPED, 0, 1, id="another pattern"),
        pytest.param(an_appearance("striped", "red", "blue"), STRIPED, 1, 0, id="another second colour"),
        pytest.param(an_appearance("striped", "blue", "white"), STRIPED, 1, 0, id="another main colour"),
        pytest.param(an_appearance("plain", "red"), STRIPED, 0, 0, id="pattern lost"),
        pytest.param(an_appearance("striped", "red", "red"), STRIPED, 1, 0, id="one colour twice"),
        pytest.param(an_appearance("plain", "red"), an_appearance("plain", "red"), 1, 1, id="one colour"),
        pytest.param(an_appearance("plain", "red", "blue"), an_appearance("plain", "red"), 1, 0, id="a colour more"),
        pytest.param(an_appearance("plain", "blue"), an_appearance("plain", "red"), 1, 0, id="one other colour"),
    ],
)
def test_pattern_and_colours_are_those_of_the_reference(
    picture: Appearance, reference: Appearance, pattern: int, colours: int
) -> None:
    found = agreement([picture], reference)
    assert found == {"pattern": pattern, "colours": colours, "pattern_and_colours": pattern * colours}


def test_the_agreement_of_views_is_a_share() -> None:
    views = [STRIPED, an_appearance("striped", "red", "blue"), an_appearance("plain", "white", "red"), STRIPED]
    assert agreement(views, STRIPED) == {"pattern": 0.75, "colours": 0.75, "pattern_and_colours": 0.5}
    with pytest.raises(ValueError, match="no pictures"):
        agreement([], STRIPED)


def a_case(views: list[bytes]) -> dict[str, Any]:
    own = {"subject": "mug-0", "word": "mug", "prompt": "a mug in the snow", "background": "snow"}
    return {**own, "reference": png(1), "views": views, "another_subject": None}


def test_a_picture_is_compared_with_its_own_reference(weights: dict[str, Path]) -> None:
    backbone = weights["base"] / "backbone"
    scorer = Scorer(EvaluateConfig(), str(backbone), "cpu")
    pictures = to_tensor([load_picture(png(seed)) for seed in (1, 2)])
    case = a_case([png(1), png(3), png(4)])
    found = scorer.score(pictures, [case, case])
    judge = JudgeScorer.from_pretrained(backbone / "judge")
    reference, other = judge.appearances(pictures)
    assert found["reference_pattern"] == (reference.pattern,) * 2
    assert [found[answer][0] for answer in ANSWERS] == [1, 1, 1]
    assert {answer: found[answer][1] for answer in ANSWERS} == agreement([other], reference)
    views = [judge.appearances(to_tensor([load_picture(view)]))[0] for view in case["views"]]
    assert {answer: found[f"views_{answer}"][0] for answer in ANSWERS} == agreement(views, reference)


def test_without_a_judge_there_are_no_answers(weights: dict[str, Path]) -> None:
    scorer = Scorer(EvaluateConfig(similarity="clip"), str(weights["base"] / "backbone"), "cpu")
    found = scorer.score(to_tensor([load_picture(png(1))]), [a_case([png(2)])])
    for answer in ANSWERS:
        assert found[answer] == found[f"views_{answer}"] == found["reference_pattern"] == [None]


def judged(
    arm: str, subject: str, seed: int, reference: str, right: tuple[int, int], views: float = 0.5
) -> dict[str, Any]:
    answers = dict(zip(ANSWERS, (*right, right[0] * right[1]), strict=True))
    real = {f"views_{answer}": views for answer in ANSWERS}
    return {**a_row(arm, subject, seed, 0.5), "reference_pattern": reference, **answers, **real}


def some_rows() -> list[dict[str, Any]]:
    """Two patterned subjects, one with three pictures, and a plain one."""
    return [
        judged("text_only", "mug-0", 0, "striped", (0, 0), 1.0),
        judged("text_only", "mug-0", 1, "striped", (0, 1), 1.0),
        judged("text_only", "mug-0", 2, "striped", (0, 0), 1.0),
        judged("text_only", "mug-1", 3, "dipped", (1, 0)),
        judged("text_only", "mug-2", 4, "plain", (1, 0), 0.2),
        judged("adapter_mask", "mug-0", 0, "striped", (1, 1), 1.0),
        judged("adapter_mask", "mug-0", 1, "striped", (1, 0), 1.0),
        judged("adapter_mask", "mug-0", 2, "striped", (0, 1), 1.0),
        judged("adapter_mask", "mug-1", 3, "dipped", (1, 1)),
        judged("adapter_mask", "mug-2", 4, "plain", (1, 1), 0.2),
        judged("concept", "bear-9", 99, "spotted", (1, 0), 0.0),
    ]


def test_patterned_and_plain_references_are_averaged_apart() -> None:
    summary = summarize(some_rows())
    patterned, plain = summary.appearance["patterned"], summary.appearance["plain"]
    means = {arm: {answer: share.mean for answer, share in own.items()} for arm, own in patterned.arms.items()}
    assert means["text_only"] == {"pattern": 0.25, "colours": 0.25, "pattern_and_colours": 0.0}
    assert means["adapter_mask"] == {"pattern": 0.75, "colours": 0.75, "pattern_and_colours": 0.5}
    assert means["concept"] == {"pattern": 1.0, "colours": 0.0, "pattern_and_colours": 0.0}
    interval = patterned.arms["adapter_mask"]["pattern"]
    assert (interval.low, interval.high) == pytest.approx((2 / 3, 1.0))  # of one subject drawn twice
    assert patterned.real_views["pattern"].mean == pytest.approx(0.75)  # of two subjects, without the concept's
    assert (patterned.subjects, plain.subjects) == (2, 1)
    assert plain.arms["adapter_mask"]["pattern"].mean == 1.0
    assert "concept" not in plain.arms
    flat = summary.flat()
    assert (flat["adapter_mask/pattern"], flat["text_only/colours"], flat["real_views/pattern"]) == (0.75, 0.25, 0.75)


def test_the_finding_and_the_table_name_arms_and_ceiling() -> None:
    summary = summarize(some_rows())
    assert findings(summary)[-1] == (
        "Of patterned subjects, the pictures by adapter + mask have the reference's pattern and its two colours in "
        "75.0 % and 75.0 % (text only 25.0 % and 25.0 %, other real views 75.0 % and 75.0 %)."
    )
    table = describe_appearance(summary)
    assert table is not None
    assert [(group["kind"], group["subjects"]) for group in table["groups"]] == [("patterned", 2), ("plain", 1)]
    shown = {row["name"]: [cell and round(cell.mean, 2) for cell in row["cells"]] for row in table["rows"]}
    assert shown == {
        "Text only": [0.25, 0.25, 0.0, 1.0, 0.0, 0.0],
        "Adapter + mask": [0.75, 0.75, 0.5, 1.0, 1.0, 1.0],
        "Learned concept": [1.0, 0.0, 0.0, None, None, None],
        "Other real views": [0.75, 0.75, 0.75, 0.2, 0.2, 0.2],
    }


def test_without_a_judge_there_is_nothing_about_patterns() -> None:
    summary = summarize([a_row(arm, "mug-0", 0, 0.5) for arm in ("text_only", "adapter_mask")])
    assert summary.appearance == {}
    assert describe_appearance(summary) is None
    assert not any("pattern" in name for name in (*summary.flat(), *findings(summary)))
