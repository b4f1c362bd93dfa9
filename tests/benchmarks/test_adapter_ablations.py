"""The table of `adapter_ablations` from handmade results, and the benchmark itself with very little training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.benchmarks.adapter_ablations import Budget, main, train, weighted_loss
from tests.benchmarks.support.ablation_table import markdown, plot
from tests.benchmarks.support.ablation_variants import STANDARD
from tests.support.score_rows import a_row


def scores(arm: str, similarity: Sequence[float]) -> list[dict[str, Any]]:
    """One picture each of three subjects, the last of a held-out category; real views have a similarity of 0.9."""
    return [
        {**a_row(arm, subject, 0, value), "controllability": 1.0, "held_out": subject == "c"}
        for subject, value in zip("abc", similarity, strict=True)
    ]


PLAIN = scores("text_only", [0.1, 0.1, 0.1])
RESULTS: list[dict[str, Any]] = [
    {
        "variant": name,
        "examples": 22_400,
        "rows": {"1": scores("adapter_mask", first), "2": scores("adapter_mask", second)},
    }
    for name, first, second in (
        ("no_crops", [0.7, 0.7, 0.1], [0.5, 0.5, 0.5]),
        ("standard", [0.5, 0.5, 0.3], [0.5, 0.5, 0.5]),
    )
]


def test_the_table_has_the_standard_first_and_gaps_by_hand() -> None:
    lines = markdown(RESULTS, PLAIN).splitlines()
    standard, no_crops = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:])
    assert standard[:4] == ["standard", STANDARD.change, "22,400", ""]
    assert no_crops[0] == "no_crops"
    assert no_crops[3].startswith("+0.07 (")  # the mean of 0.2, 0.2 and -0.2
    assert standard[4].startswith("0.43 (")
    assert standard[5].startswith("0.42 (")  # (0.4 + 0.4 + 0.2) / 2.4
    assert standard[6].startswith("0.25 (")  # (0.3 - 0.1) / 0.8
    assert standard[7] == "1.00 (1.00 to 1.00)"
    assert standard[9] == no_crops[9] == "0.50 (0.50 to 0.50)"
    assert no_crops[6].startswith("0.00 (")


def test_a_table_without_the_standard_and_without_held_out_subjects() -> None:
    few = [{**RESULTS[0], "rows": {"1": RESULTS[0]["rows"]["1"][:2]}}]
    cells = [cell.strip() for cell in markdown(few, PLAIN[:2]).splitlines()[2].split("|")[1:-1]]
    assert cells[3] == cells[6] == ""


def test_a_change_of_the_default_run_s_training_is_compared_with_that() -> None:
    names = {"standard": "default_run", "no_crops": "no_tiles"}
    renamed = [{**result, "variant": names[result["variant"]]} for result in RESULTS]
    lines = markdown([RESULTS[0], *renamed], PLAIN).splitlines()[2:]  # RESULTS[0] changes the standard training
    first, default, no_tiles = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    assert [cells[0] for cells in (first, default, no_tiles)] == ["no_crops", "default_run", "no_tiles"]
    assert first[3] == default[3] == ""
    assert no_tiles[3].startswith("+0.07 (")


@pytest.mark.parametrize("count", [1, 2])
def test_the_plot(tmp_path: Path, count: int) -> None:
    plot(RESULTS[:count], PLAIN, tmp_path / "ablations.png")
    with Image.open(tmp_path / "ablations.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 10


@pytest.mark.nightly
def test_the_benchmark_trains_paints_and_does_not_repeat_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--output", str(tmp_path / "r"), "--examples-scale", "0.002", "--subjects", "3"]
    arguments += ["--painting-steps", "2", "--variants"]
    main([*arguments, "subject_loss"])
    result = json.loads((tmp_path / "r" / "subject_loss.json").read_text())
    assert result["examples"] == 32
    assert [len(rows) for rows in result["rows"].values()] == [6, 6]
    assert [row["held_out"] for row in result["rows"]["1"]] == [True] * 4 + [False] * 2
    assert "| subject_loss |" in capsys.readouterr().out
    written = (tmp_path / "r" / "subject_loss.json").stat().st_mtime_ns
    main([*arguments, "subject_loss"])
    assert (tmp_path / "r" / "subject_loss.json").stat().st_mtime_ns == written


@pytest.mark.slow
def test_a_training_moves_the_adapter_and_its_loss_is_the_product_s() -> None:
    config = Budget(examples_scale=0.002, subjects=1, painting_steps=2, seed=0).config("cpu")
    module = train(STANDARD, config, 0.002)
    values = [parameter for name, parameter in module.named_parameters() if "to_v_vision" in name]
    assert all(parameter.abs().max() > 0 for parameter in values)  # an untrained adapter's are zero
    batch = {
        "latents": torch.randn(2, 4, 16, 16),
        "noise": torch.randn(2, 4, 16, 16),
        "timesteps": torch.tensor([100, 900]),
        "hidden": module.frozen.backbone.encode_prompt(["a mug", ""]).hidden,
        "reference": torch.rand(2, 3, 64, 64),
        "keep_image": torch.tensor([True, False]),
        "multiview": torch.tensor([True, False]),
        "crop_ratio": torch.ones(2),
        "measure_gain": torch.tensor([False]),
        "weights": torch.ones(2, 1, 16, 16),
    }
    with torch.no_grad():
        torch.testing.assert_close(weighted_loss(module, batch), module(batch)["loss"])
