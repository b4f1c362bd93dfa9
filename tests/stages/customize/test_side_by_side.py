"""Work on many subjects side by side: failures, progress and SIGTERM."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stages.contract import Reporter, StageError
from stages.customize.learning import NAME, stop_request
from stages.customize.side_by_side import Board, run_side_by_side
from stages.training.config import TrainerConfig
from stages.training.job import TrainingJob
from tests.support.training_tasks import LinearTask


def requests(folder: Path, names: str) -> dict[str, Path]:
    for name in names:
        (folder / name).mkdir()
    return {name: folder / name / "stop" for name in names}


def test_one_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    def work(name: str) -> str:
        if name == "b":
            raise StageError("no picture")
        if name == "c":
            raise RuntimeError("bug")
        return name.upper()

    found = run_side_by_side("abcd", work, 2, requests(tmp_path, "abcd"))
    assert (found["a"], found["d"]) == ("A", "D")
    assert isinstance(found["b"], StageError)
    assert isinstance(found["c"], RuntimeError)


@pytest.mark.parametrize("at_once", [1, 3])
def test_no_more_run_at_once_than_there_is_room_for(tmp_path: Path, at_once: int) -> None:
    running, most, lock = set(), [0], threading.Lock()

    def work(name: str) -> None:
        with lock:
            running.add(name)
            most[0] = max(most[0], len(running))
        time.sleep(0.05)
        with lock:
            running.remove(name)

    run_side_by_side("abcdef", work, at_once, requests(tmp_path, "abcdef"))
    assert most[0] == at_once


def test_sigterm_stops_what_runs_and_begins_nothing_else(tmp_path: Path) -> None:
    """A training removes the request when it starts, so it is made again until the training has seen it."""
    stops, begun = requests(tmp_path, "abc"), []

    def work(name: str) -> None:
        begun.append(name)
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(2):
            while not stops[name].exists():
                time.sleep(0.02)
            stops[name].unlink()
        raise StageError("training concept was stopped after step 3 of 9; the same command goes on.")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StageError, match="stopped after step 3"):
        run_side_by_side("abc", work, 1, stops)
    assert begun == ["a"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_board_sums_the_progress_and_keeps_the_metrics_apart() -> None:
    events: list[Mapping[str, Any]] = []
    board = Board(report=Reporter(emit=events.append), totals={"mug": 100, "dog": 100})
    mug, dog = (board.reporter(name, {"word": name}) for name in ("mug", "dog"))
    mug.progress(40, 100, "loss 0.3")
    dog.progress(10, 100, "loss 0.2")
    dog.metric("concept/loss", 0.2, 10)
    dog.warning("one picture")
    mug.end_run({"gain": 0.1})
    assert [event["run"] for event in events if event["event"] == "run"] == ["mug", "dog"]
    last = [event for event in events if event["event"] == "progress"][-1]
    assert (last["done"], last["total"]) == (50, 200)
    assert last["note"] == "loss 0.2 (mug 40/100, dog 10/100)"
    (metric,) = [event for event in events if event["event"] == "metric"]
    assert (metric["run"], metric["key"]) == ("dog", "concept/loss")
    assert {"event": "warning", "text": "one picture"} in events
    assert events[-1] == {"event": "run_ended", "metrics": {"gain": 0.1}, "error": None, "run": "mug"}


def test_the_stop_request_is_the_trainers(tmp_path: Path) -> None:
    """`fit` keeps its files in the folder `train` of the scratch folder."""
    job = TrainingJob(
        task=LinearTask(),
        steps=1,
        config=TrainerConfig(),
        seed=0,
        cores=1,
        folder=tmp_path / "train",
        name=NAME,
    )
    assert stop_request(tmp_path) == job.stop_request
