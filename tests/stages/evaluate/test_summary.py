"""The averages of the scores, and their findings."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from model.scoring.metrics import bootstrap_interval
from stages.evaluate.cases import Subject, make_cases
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.painter import case_table
from stages.evaluate.summary import DIFFERENCES, findings, summarize
from tests.support.score_rows import a_row
from tests.support.subject_folder import png

ARMS = ("text_only", "adapter", "adapter_mask")


def a_subject(name: str = "red_mug", word: str = "mug") -> Subject:
    return Subject(name=name, word=word, reference=png(1), views=(png(2),))


def some_rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = [
        a_row(arm, f"mug-{seed // 2}", seed, 0.3 * level + 0.02 * rng.random(), 0.1 / level if level else None)
        for seed in range(8)
        for level, arm in enumerate(ARMS)
    ]
    return [*rows, a_row("concept", "mug-0", 99, 0.5)]


def test_means_and_differences_are_those_of_the_rows() -> None:
    rows = some_rows()
    summary = summarize(rows)
    for arm in ARMS:
        values = [row["similarity"] for row in rows if row["arm"] == arm]
        assert summary.arms[arm]["similarity"].mean == pytest.approx(sum(values) / 8)
        assert summary.pictures[arm] == 8
    assert summary.subjects == 4
    assert "background_change" not in summary.arms["text_only"]
    for first, second in DIFFERENCES:
        by_seed = {arm: {row["seed"]: row for row in rows if row["arm"] == arm} for arm in (first, second)}
        paired = [by_seed[first][seed]["similarity"] - by_seed[second][seed]["similarity"] for seed in range(8)]
        clusters = [by_seed[first][seed]["subject"] for seed in range(8)]
        assert summary.differences[f"{first} - {second}"]["similarity"] == bootstrap_interval(paired, clusters)
    assert summary.flat()["adapter/similarity"] == summary.arms["adapter"]["similarity"].mean


def test_the_gap_between_text_only_and_real_views() -> None:
    text = [a_row("text_only", "mug-0", 0, 0.1), a_row("text_only", "mug-1", 1, 0.3)]
    mask = [a_row("adapter_mask", "mug-0", 0, 0.5), a_row("adapter_mask", "mug-1", 1, 0.5)]
    summary = summarize([*text, *mask])
    closed = summary.gap_closed["adapter_mask"]
    assert closed.mean == pytest.approx((0.4 + 0.2) / (0.8 + 0.6))
    assert (closed.low, closed.high) == pytest.approx((0.2 / 0.6, 0.4 / 0.8))  # of one subject drawn twice
    assert "adapter" not in summary.gap_closed
    assert summary.references["real_views"].mean == pytest.approx(0.9)
    assert summary.references["another_subject"].mean == pytest.approx(0.1)
    assert summary.flat()["adapter_mask/gap_closed"] == closed.mean


def test_another_subject_is_the_next_one_with_the_same_word() -> None:
    subjects = [
        replace(a_subject(word=word), name=name, reference=name.encode())
        for name, word in (("a", "mug"), ("b", "toy"), ("c", "mug"), ("d", "mug"))
    ]
    table = case_table(make_cases(subjects, EvaluateConfig(prompts_per_subject=2), seed=0), ["text_only"])
    others = dict(zip(table["subject"].to_pylist(), table["another_subject"].to_pylist(), strict=True))
    assert others == {"a": b"c", "b": None, "c": b"d", "d": b"a"}


def test_findings_report_significant_changes_only() -> None:
    similarity, closed, fidelity, background, _ = findings(summarize(some_rows()))
    assert similarity.startswith("Subject similarity rises from 0.0")
    assert re.match(r"That closes 6\d\.\d % of the gap to real views", closed)
    assert fidelity.startswith("Prompt fidelity shows no measurable difference between 0.900 (text only)")
    assert background.startswith("Background change falls from 0.100 (adapter) to 0.050 (adapter + mask): -0.050")
