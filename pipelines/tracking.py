"""The MLflow runs of a pipeline run: a parent run, and a nested run for each stage that is executed.

A stage may start runs of its own below its run, such as one for each subject.
The tracker writes to MLflow in its own thread, so that a slow database does not slow a stage down. When the tracking
store fails, the run goes on with one warning; only `register` needs it. Everything that a stage reports is also kept in
`logs/<stage>.events.jsonl`.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, TextIO

from pipelines.errors import PipelineError
from pipelines.mlflow_runs import MOST_POINTS, MlflowRuns, Point, RunName
from pipelines.plan import Action, Step
from pipelines.store.records import EXPERIMENT
from pipelines.store.store import Output, Store
from pipelines.tracking_store import no_tracking_store, tracking_store
from stages.config import Config
from stages.contract import StageError
from stages.storage import store_path
from stages.tracking_errors import reason
from stages.tracking_server import check_tracking_server, tracking_errors

#: The first stage waits this long for the tracking store to open, and each stage for its run.
OPEN_TIMEOUT_SECONDS = 90.0


class Tracker:
    """A `pipelines.execution.runner.Listener` that logs a run to MLflow; a context manager around the parent run."""

    def __init__(self, config: Config, store: Store, plan: Sequence[Step], warn: Callable[[str], None]) -> None:
        self.place = tracking_store(config, store)
        self._config, self._store, self._plan, self._warn = config, store, plan, warn
        # Not MLflow's own asynchronous logging. Measured with 3.17: while the store was away it lost 50 of 50 metrics
        # and raised nothing; when a server stayed away it blocked the exit for more than 8 minutes.
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run_jobs, daemon=True)
        self._runs: MlflowRuns | None = None  # None: not open yet, or failed
        self._opened = threading.Event()
        self._failure = ""
        self._status = "FINISHED"
        self._reported: set[tuple[RunName, str, int]] = set()
        self._points: dict[RunName, queue.SimpleQueue[Point]] = {}  # not written yet
        self._files: dict[str, TextIO] = {}

    def __enter__(self) -> Tracker:
        self._thread.start()
        self._jobs.put(self._open)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._status = "KILLED" if kind is KeyboardInterrupt else "FAILED"
        self._submit(lambda runs: runs.close(self._status))
        self._jobs.put(None)
        self._thread.join(OPEN_TIMEOUT_SECONDS)
        for file in self._files.values():
            file.close()

    @property
    def uri(self) -> str | None:
        """Of the tracking store."""
        return self.place.uri if self.place else None

    @property
    def _must_open(self) -> bool:
        """Whether `register` will need a registry that is not in the run folder: hours later is too late to say no."""
        registers = any(step.stage.name == "register" and step.action is Action.RUN for step in self._plan)
        return registers and not (self.place and self.place.in_run_folder)

    def check(self) -> None:
        """Find out before anything runs whether `register` will have its registry, if that is not in the run folder.

        Raises:
            PipelineError: It will not.
        """
        if not self._must_open:
            return
        if not self._opened.wait(OPEN_TIMEOUT_SECONDS):
            self._failure = f"{self.place} has not answered for {OPEN_TIMEOUT_SECONDS:.0f} s"
        if self._failure:
            raise PipelineError(f"Stage register needs MLflow's registry, but {self._failure}.")

    def stage_started(self, step: Step) -> str | None:
        """Start the stage's MLflow run, when the tracking store is open; returns its id."""
        name = step.stage.name
        path = self._store.log_file(name).with_suffix(".events.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._files[name] = path.open("w", buffering=1)  # each event is one line, readable at once
        if not self._opened.wait(OPEN_TIMEOUT_SECONDS):
            return None
        run_id: queue.Queue[str | None] = queue.Queue()
        self._submit(lambda runs: run_id.put(runs.start(step)))
        self._jobs.put(lambda: run_id.put(None))  # read only when `start` has failed
        with contextlib.suppress(queue.Empty):  # the store is slow, or away for a while
            return run_id.get(timeout=OPEN_TIMEOUT_SECONDS)
        return None

    def stage_event(self, name: str, event: Mapping[str, Any]) -> None:
        """Log a metric or a sample; a step that a restarted training reports again is logged once."""
        line = {key: value for key, value in event.items() if key != "content"}
        self._files[name].write(json.dumps({"time": round(time.time(), 3), **line}) + "\n")
        run = (name, event.get("run", ""))
        if event["event"] == "run":
            self._submit(lambda runs: runs.start_own(run, event["settings"]))
        elif event["event"] == "run_ended":
            self._submit(lambda runs: runs.end_own(run, event["metrics"], event["error"]))
        if event["event"] not in ("metric", "sample"):
            return
        key = (run, event["key"], event["step"])
        if key in self._reported:
            return
        self._reported.add(key)
        if event["event"] == "sample":
            self._submit(lambda runs: runs.log_sample(*key, event["content"]))
        else:
            point = Point(event["key"], event["step"], event["value"], int(1000 * time.time()))
            self._points.setdefault(run, queue.SimpleQueue()).put(point)
            self._submit(lambda runs: self._log_points(runs, run))

    def stage_finished(self, name: str, output: Output) -> None:
        """Log the stage's results and end its MLflow run."""
        path = self._store.log_file(name).with_suffix(".events.jsonl")
        self._files.pop(name).close()
        events = [json.loads(line) for line in path.read_text().splitlines()]
        pictures = [store_path(event["path"]) for event in events if event["event"] == "picture"]
        self._submit(lambda runs: runs.finish(name, output, pictures))

    def stage_failed(self, name: str, error: PipelineError) -> None:
        """End the stage's MLflow run as failed."""
        self._files.pop(name).close()
        self._submit(lambda runs: runs.fail(name, str(error)))

    def _log_points(self, runs: MlflowRuns, run: RunName) -> None:
        """Log all points of a run that are waiting in one batch: a database takes much longer for single points."""
        waiting = self._points[run]
        points = [waiting.get() for _ in range(min(waiting.qsize(), MOST_POINTS))]
        if points:
            runs.log_points(run, points)

    def _open(self) -> None:
        try:
            if self.place is None:
                raise StageError(f"{no_tracking_store(self._store)}.")
            with self._errors():
                if not self.place.in_run_folder:
                    check_tracking_server(self.place.uri, EXPERIMENT)
                self._runs = MlflowRuns(self.place, self._store, self._config, self._plan)
        except Exception as error:
            self._failure = _failure(error)
            if not self._must_open:
                raise
        finally:
            self._opened.set()

    def _errors(self) -> AbstractContextManager[None]:
        """Names the server or the database in MLflow's errors."""
        if self.place is None or self.place.in_run_folder:
            return contextlib.nullcontext()
        return tracking_errors(self.place.uri)

    def _submit(self, job: Callable[[MlflowRuns], None]) -> None:
        """Have the tracker's thread do `job`, unless the tracking store has failed by then."""
        self._jobs.put(lambda: job(self._runs) if self._runs is not None else None)

    def _run_jobs(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                with self._errors():
                    job()
            except Exception as error:  # whatever MLflow raises, a failed tracking store must not end the run
                self._runs = None
                logs = self._store.local_folder / "logs"
                self._warn(f"MLflow does not record this run ({_failure(error)}); events are kept in {logs}.")


def _failure(error: Exception) -> str:
    """What has failed, for the middle of a sentence."""
    if isinstance(error, StageError):
        return str(error).rstrip(".").replace("The MLflow", "the MLflow", 1)
    return f"{type(error).__name__}: {reason(error)}"
