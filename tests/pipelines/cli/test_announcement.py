from __future__ import annotations

import json
from pathlib import Path

from pipelines.cli.announcement import MICRO_SECONDS, announce, expected_time
from pipelines.config.loading import load_config
from pipelines.graph import STAGES, pipeline_graph
from pipelines.plan import make_plan
from pipelines.store.manifest import MANIFEST
from pipelines.store.store import Output, Store
from stages.contract import StageResult
from tests.support.toy_pipeline import commit_stage


def outputs(tmp_path: Path, **seconds: float) -> dict[str, Output]:
    """Committed outputs of stages that took so long."""
    found = {name: commit_stage(Store(tmp_path / "run"), name, StageResult()) for name in seconds}
    for name, output in found.items():
        file = output.folder / MANIFEST
        file.write_text(json.dumps(json.loads(file.read_text()) | {"seconds": seconds[name]}))
    return found


def test_a_run_says_what_it_does_and_where_and_how_long_it_takes(tmp_path: Path) -> None:
    config, store = load_config("micro", [f"run.folder={tmp_path / 'run'}"]), Store(tmp_path / "run")
    graph = pipeline_graph(config)
    lines = announce(config, store, make_plan(graph, store, graph.order)).splitlines()
    assert len(lines) == 4
    assert "12 of 12 stages" in lines[0]
    assert all(name in lines[1] for name in graph.order)
    assert str(store.folder) in lines[2]
    assert f"about {sum(MICRO_SECONDS.values()) / 60:.0f} minutes" in lines[3]
    assert "less than a minute" in announce(config, store, make_plan(graph, store, ["filter"])).splitlines()[3]


def test_another_configuration_takes_as_long_as_its_last_run_did(tmp_path: Path) -> None:
    config = load_config("micro", ["curriculum.steps=7"])
    assert expected_time(["ingest", "filter"], config, {}) == ""
    assert expected_time(["ingest", "filter"], config, outputs(tmp_path, ingest=100.0)) == ""
    earlier = outputs(tmp_path, ingest=100.0, filter=200.0, train_adapter=9000.0)
    assert "about 5 minutes" in expected_time(["ingest", "filter"], config, earlier)
    assert "about 2.6 hours" in expected_time(list(earlier), config, earlier)


def test_every_stage_of_the_default_run_was_measured() -> None:
    default = pipeline_graph(load_config("micro"))
    assert set(MICRO_SECONDS) == set(default.stages) <= {stage.name for stage in STAGES}
