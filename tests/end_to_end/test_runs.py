"""Runs as a user starts them: all stages, the same command again, and runs that are killed or stopped.

A killed run continues with the same command, or with one that changes settings of the operation only. Its datasets are
row for row those of an uninterrupted run. All of this is one file because the tests share the uninterrupted run.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.cli.messages import pipeline
from stages.training.checkpoints import CheckpointFolder
from tests.support.tiny_run import REPOSITORY, StartedRun, run

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
    assert ("realword-micro",) in models  # a concept beside it, if so short a training has taught one


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


DATASETS = [
    ("microworld", "metadata"),
    ("ingest", "samples"),
    ("ingest", "rejected"),
    ("ingest", "failed"),
    ("filter", "samples"),
    ("filter", "rejected"),
    ("multiview", "frames"),
    ("multiview", "pairs"),
    ("curriculum", "plan"),
]

GOAL = ["--stage", "train_adapter"]
#: They change how the adapter is trained, not what is trained: the training goes on from its checkpoint.
OTHER_OPERATION = [
    "--set=train_adapter.trainer.workers=1",
    "--set=train_adapter.trainer.accumulation=2",
    "--set=train_adapter.trainer.checkpoint_every=3",
    "--set=train_adapter.data_workers=0",
    "--set=train_adapter.sample_every=20",
    "--set=backbone.dtype=bfloat16",
    "--set=ingest.threads=2",
]


@dataclass(frozen=True)
class Stop:
    """The result of a run that was stopped in train_adapter."""

    code: int
    printed: str
    checkpoint: int  # the step of the last checkpoint; 0: there is none


@pytest.fixture(scope="module")
def stopped(finished: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Stop]:
    """A run whose data is finished, and which was stopped in train_adapter by SIGTERM."""
    folder = without_adapter(finished[0], tmp_path_factory.mktemp("stopped") / "run")
    started = StartedRun(folder, *GOAL)
    started.wait_for("train_adapter", 1)
    return folder, Stop(*started.end(signal.SIGTERM), latest_checkpoint(folder))


@pytest.fixture(scope="module")
def resumed(stopped: tuple[Path, Stop]) -> Path:
    """The same run, finished by a command that changes settings of the operation."""
    printed = run(stopped[0], *GOAL, *OTHER_OPERATION)
    assert "train_adapter  starts (interrupted; goes on from there)" in printed
    return stopped[0]


def without_adapter(finished: Path, folder: Path) -> Path:
    """A copy of a run in which train_adapter never ran."""
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "stages" / "train_adapter")
    return folder


def kill_in(folder: Path, stage: str, done: int) -> None:
    """Start a run and end it by SIGKILL when `stage` reports progress of `done`."""
    started = StartedRun(folder, *GOAL)
    started.wait_for(stage, done)
    started.end(signal.SIGKILL)
    assert not any((folder / "stages" / stage).glob("*/manifest.json"))


def latest_checkpoint(folder: Path) -> int:
    (training,) = folder.glob("stages/train_adapter/*.scratch/train")
    checkpoint = CheckpointFolder(training / "adapter-checkpoints").latest()
    return checkpoint.step if checkpoint else 0


def assert_stopped_with_checkpoint(stop: Stop) -> None:
    assert stop.code == 130
    assert stop.printed.endswith("Stopped. Finished stages are kept; the same command continues from here.\n")
    found = re.search("Stage train_adapter was stopped: .* after step ([0-9]+) of 24; the same command", stop.printed)
    assert found, stop.printed
    assert stop.checkpoint == int(found[1])


def assert_same_datasets(folder: Path, uninterrupted: Path) -> None:
    for stage, dataset in DATASETS:
        (output,) = (folder / "stages" / stage).iterdir()
        found = pq.read_table(output / dataset)
        assert found.equals(pq.read_table(uninterrupted / "stages" / stage / output.name / dataset))
        assert found.num_rows


def test_a_stopped_training_writes_a_checkpoint_first(stopped: tuple[Path, Stop]) -> None:
    assert_stopped_with_checkpoint(stopped[1])
    assert "mlflow" not in stopped[1].printed.lower()


@pytest.mark.nightly  # tests/stages/training has the same in small
def test_a_training_continues_with_another_operation(resumed: Path) -> None:
    """That a resumed training has the same result is tested in `test_trainer.py`."""
    (output,) = (resumed / "stages" / "train_adapter").iterdir()
    assert list((output / "adapter").glob("*.safetensors"))


@pytest.mark.nightly
def test_the_datasets_of_a_killed_run_are_those_of_an_uninterrupted_run(
    tmp_path: Path, finished: tuple[Path, str]
) -> None:
    folder = tmp_path / "run"
    for stage, done in (("ingest", 20), ("filter", 1)):
        kill_in(folder, stage, done)
    run(folder, "--stage", "curriculum")
    assert_same_datasets(folder, finished[0])


@pytest.mark.nightly
def test_training_continues_without_mlflow_and_stops_at_ctrl_c(tmp_path: Path, finished: tuple[Path, str]) -> None:
    folder = without_adapter(finished[0], tmp_path / "run")
    started = StartedRun(folder, *GOAL)
    started.wait_for("train_adapter", 0)
    (folder / "mlflow" / "mlflow.db").write_text("gone")
    started.wait_for("train_adapter", 5)
    stop = Stop(*started.end(signal.SIGINT), latest_checkpoint(folder))
    assert_stopped_with_checkpoint(stop)
    (line,) = [line for line in stop.printed.splitlines() if "mlflow" in line.lower()]
    assert "warning: MLflow does not record this run (" in line
