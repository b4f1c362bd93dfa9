from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.errors import PipelineError
from pipelines.plan import Step, make_plan
from pipelines.store.records import EXPERIMENT
from pipelines.store.store import Store
from pipelines.tracking import Tracker
from stages.contract import StageResult
from stages.local_copies import local_copy
from tests.support.toy_pipeline import commit_stage, toy_config, toy_graph

pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "run")
    store.folder.mkdir()
    return store


@pytest.fixture
def plan(tmp_path: Path, store: Store) -> list[Step]:
    graph = toy_graph(tmp_path)
    fingerprint = make_plan(graph, store, ["multiview"])[0].ingredients
    commit_stage(store, "multiview", StageResult(), fingerprint)
    return make_plan(graph, store, graph.order)


def metric(step: int, value: float) -> dict[str, Any]:
    return {"event": "metric", "key": "loss", "value": value, "step": step}


def sample_event(path: Path, step: int) -> dict[str, Any]:
    """As `StageJob` passes it on; the file is gone, as after a commit."""
    Image.new("RGB", (4, 4), "red").save(path)
    content = path.read_bytes()
    path.unlink()
    return {"event": "sample", "key": "samples", "path": str(path), "step": step, "content": content}


def follow(tracker: Tracker, plan: list[Step], store: Store) -> str | None:
    """A run of `ingest`, which replays a step, and a failure of `filter`."""
    steps = {step.stage.name: step for step in plan}
    run_id = tracker.stage_started(steps["ingest"])
    for step, value in [(0, 3.0), (1, 2.0), (1, 2.0), (2, 1.0)]:
        tracker.stage_event("ingest", metric(step, value))
    for name, error in (("mug", None), ("dog", "no picture"), ("cat", None)):
        tracker.stage_event("ingest", {"event": "run", "run": name, "settings": {"word": name}})
        tracker.stage_event("ingest", {**metric(1, 5.0), "run": name})
        if name != "cat":  # ends with the stage
            ended = {"event": "run_ended", "run": name, "metrics": {"gain": 0.25}, "error": error}
            tracker.stage_event("ingest", ended)
    work = store.begin("ingest", steps["ingest"].ingredients.fingerprint, restart=True)
    tracker.stage_event("ingest", sample_event(local_copy(work.scratch) / "sample.png", step=2))
    (work.output / "curves.png").write_bytes(b"small")
    (work.output / "large.png").write_bytes(b"0" * 6_000_000)
    for name in ("curves.png", "large.png"):
        tracker.stage_event("ingest", {"event": "picture", "key": name, "path": str(work.output / name)})
    result = StageResult(rows={"samples": 7}, metrics={"share": 0.5}, notes={"writer": "grammar"})
    output = commit_stage(store, "ingest", result, steps["ingest"].ingredients, work)
    tracker.stage_finished("ingest", output)
    tracker.stage_started(steps["filter"])
    tracker.stage_failed("filter", PipelineError("Stage filter: nothing is left."))
    return run_id


def follow_a_failed_run(tracker: Tracker, plan: list[Step], store: Store) -> None:
    with tracker:
        follow(tracker, plan, store)
        raise PipelineError("the run failed")


def test_a_run_is_recorded_with_its_stages(tmp_path: Path, store: Store, plan: list[Step]) -> None:
    from mlflow import MlflowClient

    warnings: list[str] = []
    tracker = Tracker(toy_config(tmp_path), store, plan, warnings.append)
    with pytest.raises(PipelineError, match="the run failed"):
        follow_a_failed_run(tracker, plan, store)
    assert warnings == []
    client = MlflowClient(tracker.uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment.artifact_location == str(store.folder / "mlflow" / "artifacts")
    runs = {run.info.run_name.split()[0]: run for run in client.search_runs([experiment.experiment_id])}
    parent, ingest, filtering = runs["micro"], runs["ingest"], runs["filter"]
    assert [run.info.status for run in (parent, ingest, filtering)] == ["FAILED", "FINISHED", "FAILED"]
    assert parent.data.tags["up_to_date"] == "multiview"
    assert ingest.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert ingest.data.tags["writer"] == "grammar"
    assert ingest.data.params["ingest.threads"] == "16"
    assert ingest.data.metrics["rows.samples"] == 7
    assert ingest.data.metrics["share"] == 0.5
    run_id = ingest.info.run_id
    curve = client.get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in curve] == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert {item.path for item in client.list_artifacts(run_id)} == {"manifest.json", "curves.png", "images"}
    assert any("samples+step+2+" in item.path for item in client.list_artifacts(run_id, "images"))
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} == {"config.yaml"}
    assert filtering.data.tags["error"] == "Stage filter: nothing is left."
    own = [runs[name] for name in ("mug", "dog", "cat")]
    assert [run.info.status for run in own] == ["FINISHED", "FAILED", "FINISHED"]
    assert {run.data.tags["mlflow.parentRunId"] for run in own} == {run_id}
    assert [run.data.params["word"] for run in own] == ["mug", "dog", "cat"]
    assert [run.data.metrics for run in own] == [{"loss": 5.0, "gain": 0.25}] * 2 + [{"loss": 5.0}]
    assert own[1].data.tags["error"] == "no picture"


def test_what_the_machine_does_is_recorded_while_a_stage_runs(
    tmp_path: Path, store: Store, plan: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with Tracker(toy_config(tmp_path), store, plan, lambda text: None) as tracker:
        run_id = tracker.stage_started({step.stage.name: step for step in plan}["ingest"])
        time.sleep(1)
        tracker.stage_failed("ingest", PipelineError("Stage ingest: nothing is left."))
    metrics = MlflowClient(tracker.uri).get_run(run_id).data.metrics
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= metrics.keys()


def test_without_a_tracker_the_run_goes_on_and_events_are_kept(tmp_path: Path, store: Store, plan: list[Step]) -> None:
    (store.folder / "mlflow").mkdir()
    (store.folder / "mlflow" / "mlflow.db").write_text("not a database")
    warnings: list[str] = []
    with Tracker(toy_config(tmp_path), store, plan, warnings.append) as tracker:
        assert follow(tracker, plan, store) is None
    assert len(warnings) == 1
    assert warnings[0].startswith("MLflow does not record this run (")
    assert "\n" not in warnings[0]
    events = [json.loads(line) for line in (store.folder / "logs" / "ingest.events.jsonl").read_text().splitlines()]
    own = ["run", "metric", "run_ended"] * 2 + ["run", "metric"]
    assert [event["event"] for event in events] == ["metric"] * 4 + own + ["sample"] + ["picture"] * 2


def test_a_tracker_that_goes_away_is_a_warning_and_the_run_goes_on(
    tmp_path: Path, store: Store, plan: list[Step], capfd: pytest.CaptureFixture[str]
) -> None:
    warnings: list[str] = []
    steps = {step.stage.name: step for step in plan}
    with Tracker(toy_config(tmp_path), store, plan, warnings.append) as tracker:
        assert tracker.stage_started(steps["ingest"]) is not None
        tracker.stage_event("ingest", metric(0, 3.0))
        (store.folder / "mlflow" / "mlflow.db").write_text("gone")
        for step in range(1, 100):
            tracker.stage_event("ingest", metric(step, 2.0))
            time.sleep(0.002)
        tracker.stage_failed("ingest", PipelineError("Stage ingest: nothing is left."))
        assert tracker.stage_started(steps["filter"]) is None
        tracker.stage_event("filter", metric(0, 1.0))
        tracker.stage_failed("filter", PipelineError("Stage filter: nothing is left."))
    assert len(warnings) == 1
    assert warnings[0].startswith("MLflow does not record this run (")
    assert capfd.readouterr().err == "", "MLflow itself has nothing to say"
    for name, count in (("ingest", 100), ("filter", 1)):
        assert len((store.folder / "logs" / f"{name}.events.jsonl").read_text().splitlines()) == count
