"""The tables of `curriculum_recipes`, from handmade results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.scoring.metrics import Interval, bootstrap_interval
from model.training.curriculum import Recipe
from pipelines.config.loading import load_config, with_values
from stages.curriculum.stage import recipe_of
from tests.benchmarks.support.recipe_table import ARMS, TABLE_X, Scores, interval, markdown, plot, verdict


def result(recipe: int, seed: int, similarity: Sequence[float], controllability: float = 0.5) -> dict[str, Any]:
    """Two subjects with two pictures each."""
    arms = [*ARMS, "text_only"] if recipe == 1 else list(ARMS)
    pictures = [
        {"arm": arm, "subject": "ab"[number // 2], "similarity": value, "controllability": controllability, "clip_t": 0}
        for arm in arms
        for number, value in enumerate(similarity)
    ]
    return {"recipe": recipe, "seed": seed, "pictures": pictures}


def test_the_recipes_are_those_of_the_paper() -> None:
    """As in `model.training.curriculum.Recipe`'s table."""
    config = load_config("micro", ["curriculum.steps=10", "curriculum.batch_size=2"])
    recipes = [
        recipe_of(with_values(config, {f"curriculum.{key}": value for key, value in row.settings.items()}).curriculum)
        for row in TABLE_X
    ]
    common: dict[str, Any] = {"steps": 10, "batch_size": 2, "r_min": 1.0}
    root = 3.1622776601683795
    assert recipes == [
        Recipe(**common, multiview=0, r_max=1),
        Recipe(**common, multiview=1, r_max=1),
        Recipe(**common, multiview=0.5, r_max=1),
        Recipe(**common, r_max=1),
        Recipe(**common, r_max=root, crops="random"),
        Recipe(**common, r_max=root),
    ]


def test_scores_are_means_over_a_subjects_pictures() -> None:
    runs = [result(6, 1, [1, 3, 5, 9]), result(6, 0, [0, 0, 2, 4])]
    scores = Scores.of(runs, "adapter", "similarity")
    assert scores.seeds == (0, 1)
    np.testing.assert_equal(scores.values, [[0, 3], [2, 7]])


def test_differences_are_of_shared_seeds() -> None:
    difference = Scores(np.array([[1.0, 2], [3, 5]]), (0, 2)).minus(Scores(np.array([[1.0, 1], [9, 9]]), (2, 1)))
    assert difference.seeds == (2,)
    np.testing.assert_equal(difference.values, [[2, 4]])


def test_with_one_seed_the_interval_is_that_over_subjects() -> None:
    values = np.random.default_rng(0).normal(size=30)
    found = interval(Scores(values[None], (0,)))
    expected = bootstrap_interval(values, [str(number) for number in range(30)], resamples=20_000)
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high), abs=0.03)


def test_the_interval_covers_seeds_and_subjects() -> None:
    """Of a sum of a seed's and a subject's part the mean has the sum of both means' variances."""
    rng = np.random.default_rng(1)
    of_seeds, of_subjects = rng.normal(size=(60, 1)), 2 * rng.normal(size=(1, 80))
    found = interval(Scores(of_seeds + of_subjects, tuple(range(60))), resamples=20_000)
    width = 2 * 1.96 * math.sqrt(of_seeds.var() / 60 + of_subjects.var() / 80)
    assert found.high - found.low == pytest.approx(width, rel=0.05)


@pytest.mark.parametrize(
    ("low", "high", "papers", "expected"),
    [
        (0.1, 0.3, 1.25, "same"),
        (-0.3, -0.1, -1.25, "same"),
        (-0.3, -0.1, 1.25, "OPPOSITE"),
        (-0.1, 0.3, 1.25, "open"),
        (0.1, 0.3, 33.43 - 33.43, "none in the paper"),
    ],
)
def test_verdicts(low: float, high: float, papers: float, expected: str) -> None:
    assert verdict(Interval(mean=(low + high) / 2, low=low, high=high), papers) == expected


def test_the_tables() -> None:
    runs = [result(1, 0, [0.2] * 4, 0.9), result(6, 0, [0.5] * 4, 0.4), result(6, 1, [0.5] * 4, 0.4)]
    text = markdown(runs)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    flat = "0.500 (0.500 to 0.500)"
    assert rows[2][:5] == ["1", "text-image pairs only", "1", "30.02", "86.24"]
    assert rows[3][:3] == ["6", "No. 4 and curriculum crops", "2"]
    assert rows[3][7] == rows[3][10] == flat
    differences = rows[6]
    assert differences[:3] == ["No. 6 - No. 1", "+3.41", "+1.08"]
    assert differences[3:5] == ["-0.500 (-0.500 to -0.500)", "OPPOSITE"]
    assert differences[7:] == ["+0.300 (+0.300 to +0.300)", "same"]
    assert "from text only: prompt fidelity 0.900 (0.900 to 0.900)" in text


def test_the_plot_and_the_control_which_the_paper_does_not_have(tmp_path: Path) -> None:
    runs = [result(1, 0, [0.2] * 4, 0.9), result(7, 0, [0.5] * 4, 0.4)]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown(runs).splitlines()]
    control = next(row for row in rows if row[:1] == ["7"])
    assert control[3:5] == ["", ""]
    difference = next(row for row in rows if row[:1] == ["No. 7 - No. 1"])
    assert difference[1:5] == ["", "", "-0.500 (-0.500 to -0.500)", ""]
    plot(runs, tmp_path / "recipes.png")
    with Image.open(tmp_path / "recipes.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 10
