"""The record of a run in MLflow: a parent run, and a nested run for each stage that was executed.

The tracker works in its own thread, so that a slow database never holds a stage up, and it may be down: then the run
goes on with one warning. What a stage reports is also kept in `logs/<stage>.events.jsonl`.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from pipelines.config.loading import config_to_dict
from pipelines.errors import PipelineError
from pipelines.plan import Action, Step
from pipelines.store.manifest import MANIFEST
from pipelines.store.store import Output, Store
from stages.config import Config

EXPERIMENT = "realword"

#: A nested run's artifacts are small things to look at; datasets and weights stay where they are.
LARGEST_ARTIFACT_BYTES = 5_000_000

#: So many points of curves are written at once, which is MLflow's most.
MOST_POINTS = 1000

#: How long the first stage waits for the tracker to be up.
PATIENCE_SECONDS = 90.0


def tracking_uri(store: Store) -> str:
    """Where MLflow keeps the records of a run folder."""
    return f"sqlite:///{store.tracking_folder / 'mlflow.db'}"


@dataclass(frozen=True)
class Point:
    """A point of a stage's curve, and when it was reported (since 1970)."""

    stage: str
    key: str
    step: int
    value: float
    milliseconds: int


class Tracker:
    """Follows a run (see `pipelines.execution.runner.Listener`). A context manager around the parent run."""

    def __init__(self, config: Config, store: Store, plan: Sequence[Step], warn: Callable[[str], None]) -> None:
        self.uri = tracking_uri(store)
        self._config, self._store, self._plan, self._warn = config, store, plan, warn
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._records: Records | None = None
        self._up = threading.Event()
        self._status = "FINISHED"
        self._seen: set[tuple[str, str, int]] = set()
        self._points: queue.SimpleQueue[Point] = queue.SimpleQueue()  # that are not written yet
        self._files: dict[str, TextIO] = {}

    def __enter__(self) -> Tracker:
        self._thread.start()
        self._work.put(self._open)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._status = "KILLED" if kind is KeyboardInterrupt else "FAILED"
        self._later(lambda records: records.close(self._status))
        self._work.put(None)
        self._thread.join(PATIENCE_SECONDS)
        for file in self._files.values():
            file.close()

    def stage_started(self, step: Step) -> str | None:
        """See `Listener`. Waits until the tracker is up."""
        name = step.stage.name
        path = self._store.log_file(name).with_suffix(".events.jsonl")
        path.parent.mkdir(exist_ok=True)
        self._files[name] = path.open("w", buffering=1)  # line by line, for whoever follows the file
        if not self._up.wait(PATIENCE_SECONDS):
            return None
        answer: queue.Queue[str | None] = queue.Queue()
        self._later(lambda records: answer.put(records.start(step)))
        self._work.put(lambda: answer.put(None))  # when that has failed
        return answer.get()

    def stage_event(self, name: str, event: Mapping[str, Any]) -> None:
        """See `Listener`. A step that is reported again after a restart is recorded once."""
        self._files[name].write(json.dumps({"time": round(time.time(), 3), **event}) + "\n")
        if event["event"] not in ("metric", "sample"):
            return
        place = (name, event["key"], event["step"])
        if place in self._seen:
            return
        self._seen.add(place)
        if event["event"] == "sample":
            self._later(lambda records: records.show(*place, Path(event["path"])))
        else:
            self._points.put(Point(*place, event["value"], int(1000 * time.time())))
            self._later(self._write_points)

    def stage_finished(self, name: str, output: Output) -> None:
        """See `Listener`."""
        lines = self._store.log_file(name).with_suffix(".events.jsonl")
        self._files.pop(name).close()
        events = [json.loads(line) for line in lines.read_text().splitlines()]
        pictures = [_committed(event["path"], output) for event in events if event["event"] == "picture"]
        self._later(lambda records: records.finish(name, output, pictures))

    def stage_failed(self, name: str, error: PipelineError) -> None:
        """See `Listener`."""
        self._files.pop(name).close()
        self._later(lambda records: records.fail(name, str(error)))

    def _write_points(self, records: Records) -> None:
        """Those that have come meanwhile, all at once: a database takes much longer for each by itself."""
        points: dict[str, list[Point]] = {}
        for _ in range(min(self._points.qsize(), MOST_POINTS)):
            point = self._points.get()
            points.setdefault(point.stage, []).append(point)
        for stage, some in points.items():
            records.write(stage, some)

    def _open(self) -> None:
        try:
            self._records = Records(self.uri, self._store, self._config, self._plan)
        finally:
            self._up.set()

    def _later(self, job: Callable[[Records], None]) -> None:
        """Have the tracker's thread do `job`, unless the tracker is down by then."""
        self._work.put(lambda: job(self._records) if self._records is not None else None)

    def _follow(self) -> None:
        while (job := self._work.get()) is not None:
            try:
                job()
            # A tracker that is down, in whatever way its client puts it, must not end a run.
            except Exception as error:
                self._records = None
                logs = self._store.folder / "logs"
                reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
                self._warn(
                    f"MLflow does not record this run ({type(error).__name__}: {reason}); events are kept in {logs}."
                )


class Records:
    """The MLflow side: used from one thread.

    While a stage runs, MLflow's monitor adds what this machine does (`system/...`: CPU, memory, network, GPUs) every
    ten seconds.
    """

    def __init__(self, uri: str, store: Store, config: Config, plan: Sequence[Step]) -> None:
        store.tracking_folder.mkdir(exist_ok=True)
        from mlflow import MlflowClient
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._monitor = partial(SystemMetricsMonitor, tracking_uri=uri)
        self._monitors: dict[str, SystemMetricsMonitor] = {}
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        self._experiment_id = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(EXPERIMENT, artifact_location=str(store.tracking_folder / "artifacts"))
        )
        kept = [step.stage.name for step in plan if step.action is Action.KEEP]
        tags = {"up_to_date": ", ".join(kept), "profile": config.profile}
        self._parent = self._create(f"{config.profile} {time.strftime('%Y-%m-%d %H:%M:%S')}", tags)
        self._client.log_dict(self._parent, config_to_dict(config), "config.yaml")
        self._runs: dict[str, str] = {}

    def start(self, step: Step) -> str:
        """Open the stage's run; its id."""
        name = step.stage.name
        tags = {"mlflow.parentRunId": self._parent, "fingerprint": step.ingredients.fingerprint, "why": step.why}
        run_id = self._runs[name] = self._create(name, tags)
        for key, value in step.ingredients.config.items():
            self._client.log_param(run_id, key, value)
        self._monitors[name] = self._monitor(run_id)
        self._monitors[name].start()
        return run_id

    def write(self, name: str, points: Sequence[Point]) -> None:
        """Points of a stage's curves."""
        from mlflow.entities import Metric

        metrics = [Metric(point.key, point.value, point.milliseconds, point.step) for point in points]
        self._client.log_batch(self._runs[name], metrics)

    def show(self, name: str, key: str, step: int, file: Path) -> None:
        """One picture of a series."""
        from PIL import Image

        with Image.open(file) as picture:
            self._client.log_image(self._runs[name], picture.convert("RGB"), key=key, step=step)

    def finish(self, name: str, output: Output, pictures: Sequence[Path]) -> None:
        """Record what the stage has made and close its run."""
        self._monitors.pop(name).finish()
        run_id, manifest = self._runs[name], output.manifest
        numbers = {f"rows.{dataset}": count for dataset, count in manifest.rows.items()} | dict(manifest.metrics)
        for key, value in {**numbers, "seconds": manifest.seconds}.items():
            self._client.log_metric(run_id, key, value)
        for key, text in manifest.notes.items():
            self._client.set_tag(run_id, key, text)
        self._client.set_tag(run_id, "output", str(output.folder))
        for path in (output.folder / MANIFEST, *pictures):
            if path.is_file() and path.stat().st_size <= LARGEST_ARTIFACT_BYTES:
                self._client.log_artifact(run_id, str(path))
        self._client.set_terminated(run_id, "FINISHED")

    def fail(self, name: str, text: str) -> None:
        """Close the stage's run with what went wrong."""
        self._monitors.pop(name).finish()
        self._client.set_tag(self._runs[name], "error", text)
        self._client.set_terminated(self._runs[name], "FAILED")

    def close(self, status: str) -> None:
        """Close the parent run."""
        self._client.set_terminated(self._parent, status)

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        run = self._client.create_run(self._experiment_id, tags=dict(tags), run_name=name)
        return str(run.info.run_id)


def _committed(path: str, output: Output) -> Path:
    """Where a file that the stage has reported lies now: its output was renamed by the commit."""
    _, _, inside = path.partition(".partial/output/")
    return output.folder / inside
