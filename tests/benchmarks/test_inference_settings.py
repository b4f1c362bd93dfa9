"""The table of `inference_settings` from handmade rows, and the benchmark itself with few pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.inference_settings import SETTINGS, main, markdown
from tests.support.score_rows import a_row


def scores(arm: str, similarity: Sequence[float], has_pattern: float) -> list[dict[str, Any]]:
    """One picture each of two subjects with striped references, the second of a held-out category."""
    answers = {"pattern": has_pattern, "colours": 0.5, "pattern_and_colours": 0.0}
    views = {f"views_{name}": 1.0 for name in answers}
    return [
        {
            **a_row(arm, subject, 0, value),
            "reference_pattern": "striped",
            **answers,
            **views,
            "held_out": subject == "b",
        }
        for subject, value in zip("ab", similarity, strict=True)
    ]


PLAIN = scores("text_only", [0.1, 0.1], 0.0)


def test_a_setting_is_compared_with_the_defaults_by_hand() -> None:
    results = {
        "the defaults": scores("adapter_mask", [0.6, 0.3], 0.0),
        "mask_binary": scores("adapter_mask", [0.7, 0.3], 1.0),
    }
    defaults, binary = (
        [cell.split(" ")[0] for cell in line[2:].split(" | ")] for line in markdown(results, PLAIN).splitlines()[2:]
    )
    assert defaults[1:] == ["0.45", "", "0.44", "0.25", "0.90", "0.00", "0.50"]  # gaps: 0.35 / 0.8 and 0.2 / 0.8
    assert binary[1:] == ["0.50", "+0.05", "0.50", "0.25", "0.90", "1.00", "0.50"]


@pytest.mark.nightly
def test_the_benchmark_paints_every_setting_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--output", str(tmp_path / "r"), "--subjects", "2", "--painting-steps", "2"]
    for _ in range(2):
        main(arguments)
    printed = capsys.readouterr().out.splitlines()
    assert [printed.count(name) for name in SETTINGS] == [1] * len(SETTINGS)
    assert sum(line.startswith("| visual_scale 1.5 |") for line in printed) == 2
