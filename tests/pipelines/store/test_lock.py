"""One run at a time in a folder of an object store, whatever happens to the runs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

import pytest
from upath import UPath

from pipelines.errors import PipelineError
from pipelines.execution.signals import stopped_by_signals
from pipelines.store.lock import StoreLock
from stages.storage import store_path, write_whole


@pytest.fixture
def folder(bucket: str) -> UPath:
    path = store_path(f"{bucket}/run")
    assert isinstance(path, UPath)
    return path


def lock_of(folder: UPath, wait: Callable[[str], None] = lambda text: None, silent: float = 2.5) -> StoreLock:
    # S3 dates objects to the second, so a run is silent after more than one.
    return StoreLock(folder, wait, heartbeat_seconds=0.1, silent_seconds=silent)


def objects(folder: UPath) -> list[str]:
    return sorted(path.name for path in (folder / "lock").glob("*"))


def test_the_second_of_two_submitters_says_who_is_at_work(folder: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_SUBMISSION_ID", "raysubmit_7")
    said: list[str] = []
    with lock_of(folder), pytest.raises(PipelineError, match=r"job raysubmit_7, process \d+ on .* is at work in"):
        lock_of(folder, said.append).__enter__()
    assert len(said) == 1
    assert "waiting" in said[0]


def test_a_lock_that_was_released_is_taken_at_once(folder: UPath) -> None:
    for _ in range(3):
        with lock_of(folder, lambda text: pytest.fail(text)) as lock:
            lock.check()
    assert objects(folder) == ["00000003.json"], "the earlier ones are removed"


def die(lock: StoreLock) -> None:
    """End a lock's heartbeat without releasing it, as a lost machine does."""
    lock._ended.set()
    assert lock._thread is not None
    lock._thread.join()


def test_the_lock_of_a_dead_run_is_taken_after_its_silence(folder: UPath) -> None:
    dead = lock_of(folder)
    dead.__enter__()
    die(dead)
    started = time.monotonic()
    with lock_of(folder) as lock:
        assert time.monotonic() - started > 1
        lock.check()
        with pytest.raises(PipelineError, match=r"has taken .*run, because this one was silent"):
            dead.check()
        dead.__exit__(None, None, None)  # it ends, and releases nothing
        lock.check()
        with pytest.raises(PipelineError, match="is at work"):
            lock_of(folder).__enter__()


def test_a_run_that_comes_back_is_stopped(folder: UPath) -> None:
    def come_back() -> None:
        with stopped_by_signals(), lock_of(folder) as lock:
            write_whole(lock._object(lock._number + 1), json.dumps({"holder": "job 8"}))
            time.sleep(5)
            pytest.fail("it works on beside the other run")

    with pytest.raises(PipelineError, match=r"Another run \(job 8\) has taken"):
        come_back()


def test_of_many_that_find_a_dead_run_one_takes_its_lock(folder: UPath) -> None:
    dead = lock_of(folder)
    dead.__enter__()
    die(dead)
    held: list[StoreLock] = []
    refused: list[PipelineError] = []

    def submit() -> None:
        lock = lock_of(folder)
        try:
            held.append(lock.__enter__())
        except PipelineError as error:
            refused.append(error)

    threads = [threading.Thread(target=submit) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 5)
    held[0].check()
    held[0].__exit__(None, None, None)


def test_a_wrong_clock_of_a_machine_takes_no_lock(folder: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    with lock_of(folder) as lock, monkeypatch.context() as patch:
        now = time.time
        patch.setattr(time, "time", lambda: now() + 86_400)
        with pytest.raises(PipelineError, match="is at work"):
            lock_of(folder).__enter__()
        lock.check()


def test_a_slow_run_cannot_use_a_number_that_was_taken_and_removed(folder: UPath) -> None:
    for _ in range(2):
        with lock_of(folder):
            pass
    slow = lock_of(folder)
    with lock_of(folder) as holder:
        slow._number = 1  # it listed the folder long ago, when it was empty
        assert slow._create(1), "the object was removed since then"
        assert not slow.is_held()
        holder.check()


def test_a_store_that_creates_an_object_twice_is_refused(folder: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(lock: StoreLock, number: int) -> bool:
        write_whole(lock._object(number), json.dumps({}))
        return True

    monkeypatch.setattr(StoreLock, "_create", create)
    with pytest.raises(PipelineError, match="If-None-Match"):
        lock_of(folder).__enter__()


def test_a_store_that_is_away_for_a_moment_does_not_end_a_run(folder: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    with lock_of(folder) as lock:
        with monkeypatch.context() as patch:
            patch.setattr("pipelines.store.lock.write_whole", None)
            time.sleep(0.3)
        before = lock._read(lock._number)["time"]
        time.sleep(0.4)
        assert lock._read(lock._number)["time"] > before
        lock.check()
