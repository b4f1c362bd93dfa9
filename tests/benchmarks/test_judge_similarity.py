"""Similarities of objects with the same properties, by hand, and the table of a few real objects."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks.judge_similarity import SHARED, main, similarity_of_counterparts


def test_similarities_of_counterparts_by_hand() -> None:
    embedded = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    category, colour = ["mug", "mug", "hat"], ["red", "blue", "red"]
    everyone = ((0.6 + 0.0) / 2 + (0.6 + 0.8) / 2 + (0.0 + 0.8) / 2) / 3
    found = [similarity_of_counterparts(embedded, properties) for properties in ([category], [colour], [])]
    assert [mean for mean, _ in found] == pytest.approx([0.6, 0.0, everyone])
    assert [count for _, count in found] == [2, 2, 3]  # the hat and the blue mug have no counterpart


@pytest.mark.slow
def test_objects_that_share_more_are_more_similar(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--objects", "400"])
    rows = [line[2:-2].split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    similarity = {name: float(mean) for name, mean, _ in rows}
    assert len(similarity) == len(SHARED) + 1
    assert similarity["nothing"] < similarity["category"] < similarity["category, main colour"]
    assert similarity["category, main colour, second colour"] < similarity["another view of the object itself"]
