from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.cli.progress import Display, LiveDisplay, make_display
from pipelines.errors import PipelineError
from pipelines.plan import Step, make_plan
from pipelines.store.store import Output, Store
from stages.contract import StageResult
from tests.support.toy_pipeline import commit_stage, toy_graph


@pytest.fixture
def plan(tmp_path: Path) -> list[Step]:
    graph = toy_graph(tmp_path)
    return make_plan(graph, Store(tmp_path / "run"), graph.order)


def finished(tmp_path: Path, name: str) -> Output:
    return commit_stage(Store(tmp_path / "run"), name, StageResult(rows={"samples": 1200, "rejected": 30}))


def run_stages(display: Display, plan: list[Step], tmp_path: Path) -> None:
    ingest, multiview = plan[0], next(step for step in plan if step.stage.name == "multiview")
    with display:
        display.set_note("starting Ray")
        display.stage_started(ingest)
        display.stage_event("ingest", {"event": "progress", "done": 0, "total": 9, "note": "downloading, 0.5 a second"})
        for done in range(9):
            note = f"downloading, {done}.5 a second"
            display.stage_event("ingest", {"event": "progress", "done": done, "total": 9, "note": note})
        display.stage_event("ingest", {"event": "progress", "done": 9, "total": 9, "note": "sorting"})
        display.stage_event("ingest", {"event": "metric", "key": "loss", "value": 1.0, "step": 0})
        display.stage_event("ingest", {"event": "warning", "text": "[3] hosts refuse"})
        display.stage_event("ingest", {"event": "table", "rows": [["reason", "rows"], ["dns", "12"], ["decode", "3"]]})
        display.stage_finished("ingest", finished(tmp_path, "ingest"))
        display.stage_started(multiview)
        display.stage_failed("multiview", PipelineError("no"))


def test_plain_lines_are_printed_from_time_to_time(plan: list[Step], tmp_path: Path) -> None:
    text = io.StringIO()
    run_stages(make_display(plan, Console(file=text, width=80)), plan, tmp_path)
    lines = [" ".join(line.split()[1:]) for line in text.getvalue().splitlines()]
    assert lines == [
        "starting Ray",
        "ingest starts (never ran)",
        "ingest 0/9 downloading, 0.5 a second",
        "ingest 9/9 sorting",
        "ingest warning: [3] hosts refuse",
        "ingest reason rows",
        "ingest dns 12",
        "ingest decode 3",
        "ingest done in 0:00: 1200 samples, 30 rejected",
        "multiview starts (never ran)",
        "multiview failed",
    ]
    assert text.getvalue().startswith("[0:00]")


def test_a_long_phase_is_printed_again(plan: list[Step], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, now = io.StringIO(), [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    display = make_display(plan, Console(file=text, width=80))
    display.stage_started(plan[0])
    for done in range(30):
        now[0] += 1
        display.stage_event("ingest", {"event": "progress", "done": done, "total": 30, "note": "downloading"})
    steps = [line.split()[2] for line in text.getvalue().splitlines()[1:]]
    assert steps == ["0/30", "10/30", "20/30"]


def test_a_terminal_shows_a_table(plan: list[Step], tmp_path: Path) -> None:
    text = io.StringIO()
    display = make_display(plan, Console(file=text, force_terminal=True, width=120, color_system=None))
    assert isinstance(display, LiveDisplay)
    run_stages(display, plan, tmp_path)
    for expected in ("ingest", "done", "1200 samples, 30 rejected", "failed", "waits", "all stages", "1/4"):
        assert expected in text.getvalue()
    assert "warning: [3] hosts refuse" in text.getvalue()
