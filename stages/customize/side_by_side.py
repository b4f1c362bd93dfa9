"""Work on many subjects side by side: each in a thread that waits for its Ray workers, with its own MLflow run."""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from stages.contract import Reporter, StageError
from stages.storage import StorePath, write_whole

_T = TypeVar("_T")
_POLL_SECONDS = 0.5


@dataclass(kw_only=True)
class Board:
    """The progress of all subjects, as one of the stage: the sum of their steps, and where each is. Thread-safe."""

    report: Reporter
    totals: dict[str, int]
    _done: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reporter(self, name: str, settings: Mapping[str, str]) -> Reporter:
        """The reporter of a subject: its metrics and samples go to a run of its own, its progress onto the board."""
        run = self.report.start_run(name, settings)

        def emit(event: Mapping[str, Any]) -> None:
            if event["event"] == "progress":
                self._show(name, event["done"], event["total"], event["note"])
            elif event["event"] in ("metric", "sample", "run_ended"):
                run.emit(event)
            else:
                self.report.emit(event)

        return Reporter(emit=emit)

    def _show(self, name: str, done: int, total: int, note: str) -> None:
        with self._lock:
            self.totals[name] = max(self.totals[name], total)
            self._done[name] = max(done, self._done.get(name, 0))
            if len(self.totals) > 1:
                others = (f"{other} {count}/{self.totals[other]}" for other, count in self._done.items())
                note = f"{note} ({', '.join(others)})"
            self.report.progress(sum(self._done.values()), sum(self.totals.values()), note)


def run_side_by_side(
    names: Sequence[str], work: Callable[[str], _T], at_once: int, stop_requests: Mapping[str, StorePath]
) -> dict[str, _T | Exception]:
    """What `work` returns or raises for each name, in threads, `at_once` at a time.

    The first SIGTERM creates the files `stop_requests`, which end trainings with a checkpoint; no other name is begun.

    Raises:
        StageError: SIGTERM has ended one.
    """
    with _sigterm() as stopping, ThreadPoolExecutor(max_workers=at_once) as threads:
        futures = {name: threads.submit(_unless, stopping, work, name) for name in names}
        while wait(futures.values(), timeout=_POLL_SECONDS).not_done:
            if stopping.is_set():
                _ask(futures, stop_requests)
    outcomes = {name: _outcome(future) for name, future in futures.items()}
    failures = [outcome for outcome in outcomes.values() if isinstance(outcome, Exception)]
    if stopping.is_set() and failures:
        raise StageError(str(failures[0]))
    return outcomes


def _unless(stopping: threading.Event, work: Callable[[str], _T], name: str) -> _T:
    if stopping.is_set():
        raise StageError(f"{name} was not begun; the same command goes on.")
    return work(name)


def _ask(futures: Mapping[str, Future[Any]], stop_requests: Mapping[str, StorePath]) -> None:
    """Again and again: a training that starts removes the file."""
    for name, future in futures.items():
        if future.running():
            with suppress(Exception):  # a store may be away for a moment
                write_whole(stop_requests[name], b"")


def _outcome(future: Future[Any]) -> Any:
    """The future's result or error."""
    try:
        return future.result()
    except StageError as error:
        return error
    except Exception as error:  # of one subject: the others must not lose their work
        traceback.print_exception(error)
        return error


@contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """An event that the first SIGTERM sets; the second one has its former effect."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = signal.getsignal(signal.SIGTERM)

    def ask(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, before)
        stopping.set()

    signal.signal(signal.SIGTERM, ask)
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGTERM, before)
