"""A pipeline run in MLflow: a parent run, and a nested run for each stage that is executed."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from pipelines.config.loading import config_to_dict
from pipelines.fingerprint import settings_read
from pipelines.plan import Action, Step
from pipelines.store.manifest import MANIFEST
from pipelines.store.records import EXPERIMENT, artifact_location, database_file, relocate
from pipelines.store.store import Output, Store
from pipelines.tracking_store import TrackingStore
from stages.config import Config
from stages.contract import StageError
from stages.local_copies import local_copy
from stages.storage import StorePath

#: Larger files stay in the run folder only.
LARGEST_ARTIFACT_BYTES = 5_000_000

#: MLflow's limits for one `log_batch`; that of parameters is that of tags as well.
MOST_POINTS = 1000
MOST_PARAMETERS = 100

#: A stage, and the name of a run of its own; "" for the stage's run.
RunName = tuple[str, str]


@dataclass(frozen=True)
class Point:
    """One value of a metric; `milliseconds` is the Unix time of the report."""

    key: str
    step: int
    value: float
    milliseconds: int


class MlflowRuns:
    """The parent run and the stages' runs in MLflow; used from one thread.

    While a stage runs, MLflow logs this machine's CPU, memory, network and GPUs (`system/...`) every ten seconds.
    """

    def __init__(self, place: TrackingStore, store: Store, config: Config, plan: Sequence[Step]) -> None:
        if place.in_run_folder:
            store.tracking_folder.mkdir(parents=True, exist_ok=True)
            relocate(database_file(store), artifact_location(store))
        self._config, uri = config, place.uri
        from mlflow import MlflowClient
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._monitor = partial(SystemMetricsMonitor, tracking_uri=uri)
        self._monitors: dict[str, SystemMetricsMonitor] = {}
        self._experiment_id = self._experiment(place)
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
        self._log(run_id, parameters={**step.ingredients.config, **settings_read(self._config, step.stage)})
        self._monitors[name] = self._monitor(run_id)
        self._monitors[name].start()
        return run_id

    def start_own(self, run: RunName, settings: Mapping[str, str]) -> None:
        """Start a run of a stage's own."""
        stage, name = run
        run_id = self._runs[run] = self._create(name, {"mlflow.parentRunId": self._runs[stage, ""]})
        self._log(run_id, parameters=settings)

    def end_own(self, run: RunName, metrics: Mapping[str, float], error: str | None) -> None:
        """End it with its results or its error."""
        run_id = self._runs.pop(run)
        self._log(run_id, metrics=metrics)
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
        tags = {**manifest.notes, "output": f"stages/{name}/{output.fingerprint}"}
        self._log(run_id, metrics={**rows, **manifest.metrics, "seconds": manifest.seconds}, tags=tags)
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

    def _log(
        self,
        run_id: str,
        parameters: Mapping[str, Any] = MappingProxyType({}),
        metrics: Mapping[str, float] = MappingProxyType({}),
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Log values together: each request to a server takes its time."""
        from mlflow.entities import Metric, Param, RunTag

        now = int(1000 * time.time())
        values: tuple[tuple[str, list[Any], int], ...] = (
            ("metrics", [Metric(key, value, now, 0) for key, value in metrics.items()], MOST_POINTS),
            ("tags", [RunTag(key, text) for key, text in tags.items()], MOST_PARAMETERS),
            ("params", [Param(key, str(value)) for key, value in parameters.items()], MOST_PARAMETERS),
        )
        for kind, found, most in values:
            for start in range(0, len(found), most):
                self._client.log_batch(run_id, **{kind: found[start : start + most]})

    def _experiment(self, place: TrackingStore) -> str:
        """The id of the experiment, which is made when it is not there."""
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            try:
                return str(self._client.create_experiment(EXPERIMENT, artifact_location=place.artifacts))
            except MlflowException:
                found = self._client.get_experiment_by_name(EXPERIMENT)  # another run has made it
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            command = f"mlflow experiments restore --experiment-id {found.experiment_id}"
            raise StageError(f"the experiment {EXPERIMENT} of {place} is deleted; restore it with: {command}.")
        return str(found.experiment_id)

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        run = self._client.create_run(self._experiment_id, tags=dict(tags), run_name=name)
        return str(run.info.run_id)
