"""A run of all stages as a user starts it, and what the same command does afterwards."""

from __future__ import annotations

import json
import re
import resource
import sqlite3
import subprocess
from pathlib import Path

import pytest

from pipelines.cli.messages import pipeline
from tests.support.tiny_run import REPOSITORY, run

pytestmark = [pytest.mark.slow]

STAGES = [
    *("microworld", "ingest", "filter", "multiview", "curriculum", "prompts", "base"),
    *("train_adapter", "contextualizer", "customize", "evaluate", "register"),
]
DOWNSTREAM_OF_FILTER = {"filter", "curriculum", "train_adapter", "evaluate", "register"}


def started(printed: str) -> set[str]:
    return {match[1] for match in re.finditer(r"\] (\w+) +starts \(", printed)}


def test_every_stage_is_committed_and_recorded(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    assert started(printed) == set(STAGES)
    for name in STAGES:
        (output,) = (folder / "stages" / name).iterdir()
        manifest = json.loads((output / "manifest.json").read_text())
        assert manifest["stage"] == name
        assert output.name == manifest["fingerprint"]
    with sqlite3.connect(folder / "mlflow" / "mlflow.db") as records:
        runs = dict(records.execute("select name, status from runs").fetchall())
        curves = {key for (key,) in records.execute("select distinct key from metrics where step > 0")}
        models = records.execute("select name from registered_models").fetchall()
    assert set(STAGES) < set(runs)
    assert set(runs.values()) == {"FINISHED"}
    assert any("loss" in key for key in curves)
    assert models == [("realword-micro",)]


def test_a_run_writes_known_files_and_folders_only(finished: tuple[Path, str]) -> None:
    known = {".lock", "latest.json", "logs", "mlflow", "stages", "generated"}
    assert {path.name for path in finished[0].iterdir()} <= known


def test_the_output_ends_with_what_to_do_next(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    lines = dict(re.findall(r"^(\w[\w ]*): +(.+)$", printed, flags=re.MULTILINE))
    assert Path(lines["Report"]).is_file()
    assert lines["Registered"].startswith("realword-micro version 1")
    assert lines["Serve it"] == f"{pipeline()} serve --set run.folder={folder}"
    painted = subprocess.run(
        lines["Paint"], shell=True, cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [Path(line).is_file() for line in painted] == [True, True]


def test_the_same_command_does_nothing(finished: tuple[Path, str]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    printed = run(finished[0], "--stage", "all")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "Everything is up to date (12 stages); there is nothing to do." in printed
    assert started(printed) == set()
    # CPU time, because the wall time depends on how busy the machine is.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5


def test_a_stricter_filter_makes_exactly_what_is_downstream_run(finished: tuple[Path, str]) -> None:
    setting = "--set=filter.min_aesthetic=5.5"
    plan = run(finished[0], setting, name="plan")
    planned = {line.split()[0] for line in plan.splitlines() if re.match(r"\w+ +runs ", line)}
    assert planned == DOWNSTREAM_OF_FILTER
    assert "config changed: filter.min_aesthetic 5.0 -> 5.5" in plan
    status = run(finished[0], name="status").splitlines()
    assert len(status) == 1 + len(STAGES) + 1
