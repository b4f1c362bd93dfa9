"""The MLflow runs of a pipeline run: a parent run, and a nested run for each stage that is executed.

A stage may start runs of its own below its run, such as one for each subject.
The tracker writes to MLflow in its own thread, so that a slow database does not slow a stage down. When the tracking
store fails, the run goes on with one warning. Everything that a stage reports is also kept in
`logs/<stage>.events.jsonl`.
"""

from __future__ import annotations

import io
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, TextIO

from pipelines.config.loading import config_to_dict
from pipelines.errors import PipelineError
from pipelines.fingerprint import settings_read
from pipelines.plan import Action, Step
from pipelines.store.manifest import MANIFEST
from pipelines.store.records import EXPERIMENT, artifact_location, database_file, relocate, sqlite_uri
from pipelines.store.store import Output, Store
from stages.config import Config
from stages.storage import StorePath, local_copy, store_path

#: Larger files stay in the run folder only.
LARGEST_ARTIFACT_BYTES = 5_000_000

#: MLflow's limit for one `log_batch`.
MOST_POINTS = 1000

#: The first stage waits this long for the tracking store to open.
OPEN_TIMEOUT_SECONDS = 90.0


#: A stage, and the name of a run of its own; "" for the stage's run.
RunName = tuple[str, str]


@dataclass(frozen=True)
class Point:
    """One value of a metric; `milliseconds` is the Unix time of the report."""

    key: str
    step: int
    value: float
    milliseconds: int


class Tracker:
    """A `pipelines.execution.runner.Listener` that logs a run to MLflow; a context manager around the parent run."""

    def __init__(self, config: Config, store: Store, plan: Sequence[Step], warn: Callable[[str], None]) -> None:
        self.uri = sqlite_uri(database_file(store))
        self._config, self._store, self._plan, self._warn = config, store, plan, warn
        # Not MLflow's own asynchronous logging. Measured with 3.17: while the store was away it lost 50 of 50 metrics
        # and raised nothing; when a server stayed away it blocked the exit for more than 8 minutes.
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run_jobs, daemon=True)
        self._runs: MlflowRuns | None = None  # None: not open yet, or failed
        self._opened = threading.Event()
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
        return run_id.get()

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
            self._runs = MlflowRuns(self.uri, self._store, self._config, self._plan)
        finally:
            self._opened.set()

    def _submit(self, job: Callable[[MlflowRuns], None]) -> None:
        """Have the tracker's thread do `job`, unless the tracking store has failed by then."""
        self._jobs.put(lambda: job(self._runs) if self._runs is not None else None)

    def _run_jobs(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception as error:  # whatever MLflow raises, a failed tracking store must not end the run
                self._runs = None
                logs = self._store.local_folder / "logs"
                reason = next(iter(str(error).strip().splitlines()), "")
                self._warn(
                    f"MLflow does not record this run ({type(error).__name__}: {reason}); events are kept in {logs}."
                )


class MlflowRuns:
    """The parent run and the stages' runs in MLflow; used from one thread.

    While a stage runs, MLflow logs this machine's CPU, memory, network and GPUs (`system/...`) every ten seconds.
    """

    def __init__(self, uri: str, store: Store, config: Config, plan: Sequence[Step]) -> None:
        store.tracking_folder.mkdir(parents=True, exist_ok=True)
        relocate(database_file(store), artifact_location(store))
        self._config = config
        from mlflow import MlflowClient
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._monitor = partial(SystemMetricsMonitor, tracking_uri=uri)
        self._monitors: dict[str, SystemMetricsMonitor] = {}
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        self._experiment_id = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(EXPERIMENT, artifact_location=artifact_location(store))
        )
        kept = [step.stage.name for step in plan if step.action is Action.KEEP]
        tags = {"up_to_date": ", ".join(kept), "profile": config.profile}
        self._parent = self._create(f"{config.profile} {time.strftime('%Y-%m-%d %H:%M:%S')}", tags)
        self._client.log_dict(self._parent, config_to_dict(config), "config.yaml")
        self._runs: dict[RunName, str] = {}  # that have not ended

    def start(self, step: Step) -> str:
        """Start the stage's run; returns its id."""
        name = step.stage.name
        tags = {"mlflow.parentRunId": self._parent, "fingerprint": step.ingredients.fingerprint, "why": step.why}
        run_id = self._runs[name, ""] = self._create(name, tags)
        for key, value in {**step.ingredients.config, **settings_read(self._config, step.stage)}.items():
            self._client.log_param(run_id, key, value)
        self._monitors[name] = self._monitor(run_id)
        self._monitors[name].start()
        return run_id

    def start_own(self, run: RunName, settings: Mapping[str, str]) -> None:
        """Start a run of a stage's own."""
        stage, name = run
        run_id = self._runs[run] = self._create(name, {"mlflow.parentRunId": self._runs[stage, ""]})
        for key, value in settings.items():
            self._client.log_param(run_id, key, value)

    def end_own(self, run: RunName, metrics: Mapping[str, float], error: str | None) -> None:
        """End it with its results or its error."""
        run_id = self._runs.pop(run)
        for key, value in metrics.items():
            self._client.log_metric(run_id, key, value)
        if error is not None:
            self._client.set_tag(run_id, "error", error)
        self._client.set_terminated(run_id, "FINISHED" if error is None else "FAILED")

    def log_points(self, run: RunName, points: Sequence[Point]) -> None:
        """Log points of a run's metrics."""
        from mlflow.entities import Metric

        metrics = [Metric(point.key, point.value, point.milliseconds, point.step) for point in points]
        self._client.log_batch(self._runs[run], metrics)

    def log_sample(self, run: RunName, key: str, step: int, content: bytes) -> None:
        """Log one picture of a series."""
        from PIL import Image

        with Image.open(io.BytesIO(content)) as picture:
            self._client.log_image(self._runs[run], picture.convert("RGB"), key=key, step=step)

    def finish(self, name: str, output: Output, pictures: Sequence[StorePath]) -> None:
        """Log what the stage has made and end its run."""
        self._monitors.pop(name).finish()
        run_id, manifest = self._runs[name, ""], output.manifest
        rows = {f"rows.{dataset}": count for dataset, count in manifest.rows.items()}
        for key, value in {**rows, **manifest.metrics, "seconds": manifest.seconds}.items():
            self._client.log_metric(run_id, key, value)
        for key, text in manifest.notes.items():
            self._client.set_tag(run_id, key, text)
        self._client.set_tag(run_id, "output", f"stages/{name}/{output.fingerprint}")
        for path in (output.folder / MANIFEST, *pictures):
            if path.is_file() and path.stat().st_size <= LARGEST_ARTIFACT_BYTES:
                self._client.log_artifact(run_id, str(local_copy(path)))
        self._end(name, "FINISHED")

    def fail(self, name: str, text: str) -> None:
        """End the stage's run with its error."""
        self._monitors.pop(name).finish()
        self._client.set_tag(self._runs[name, ""], "error", text)
        self._end(name, "FAILED")

    def close(self, status: str) -> None:
        """End the parent run."""
        self._client.set_terminated(self._parent, status)

    def _end(self, stage: str, status: str) -> None:
        """End a stage's run, and those of its own that it has not ended."""
        for run in [run for run in self._runs if run[0] == stage]:
            self._client.set_terminated(self._runs.pop(run), status)

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        run = self._client.create_run(self._experiment_id, tags=dict(tags), run_name=name)
        return str(run.info.run_id)
