"""The plots of earlier stages in the report."""

from __future__ import annotations

import base64
from pathlib import Path

from stages.evaluate.report_training import describe_plots

CUSTOMIZE = ["samples.png", "trade_off.png", "curves.png"]


def test_the_report_has_all_plots_that_the_stages_have_drawn(tmp_path: Path) -> None:
    drawn = {"customize": CUSTOMIZE, "contextualizer": ["curves.png"], "train_adapter": []}
    inputs = {stage: tmp_path / stage for stage in drawn}
    for stage, names in drawn.items():
        inputs[stage].mkdir()
        for name in names:
            (inputs[stage] / name).write_bytes(f"{stage}/{name}".encode())
    shown = {base64.b64decode(plot["uri"].partition(",")[2]).decode() for plot in describe_plots(inputs)}
    assert shown == {f"{stage}/{name}" for stage, names in drawn.items() for name in names}


def test_a_stage_that_is_no_input_has_no_plots() -> None:
    assert describe_plots({}) == []
