"""Records, registry and files of models on a real MLflow server: SQLite here; `nightly` PostgreSQL, users and S3."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from model.backbone import load_backbone
from model.concepts.concept import Concept, ConceptToken
from model.concepts.folder import write_concept
from model.concepts.model_parts import ModelParts
from pipelines.errors import PipelineError
from pipelines.plan import Step, make_plan
from pipelines.served_registry import served_registry
from pipelines.store.records import EXPERIMENT
from pipelines.store.store import Store
from pipelines.tracking import Tracker
from stages.config import Config
from stages.contract import StageError, StageResult
from stages.serve.champion import ChampionFollower
from stages.serve.registry import Registry as ServedRegistry
from stages.serve.registry import Versions
from stages.serve.served_model import ServedModel
from stages.serve.version_files import registry_cache
from tests.support.concept_entries import concept_entry
from tests.support.mlflow_server import Relay, mlflow_server
from tests.support.registered_model import Registry
from tests.support.toy_pipeline import commit_stage, toy_config, toy_graph

pytestmark = pytest.mark.slow

NAME = "realword-micro"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with mlflow_server(folder, f"sqlite:///{folder / 'mlflow.db'}", str(folder / "artifacts")) as address:
        yield address


@pytest.fixture(scope="module")
def registry(server: str, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Version 1 of `realword-micro` is the champion, and version 1 of a concept that it has learned."""
    registry = Registry(tmp_path_factory.mktemp("registry"), server)
    customize = registry.inputs["customize"]
    widths = ModelParts.of(load_backbone(registry.inputs["base"] / "backbone")).widths
    token = ConceptToken(placeholder="[v]", word="mug", subject="mug", embeddings=(torch.ones(1, widths[0]),))
    write_concept(customize / "concepts" / "mug", Concept(method="textual_inversion", backbone="", tokens=(token,)))
    (customize / "concepts.json").write_text(json.dumps([concept_entry("mug", "mug")]))
    registry.register(0.6)
    (customize / "concepts.json").write_text("[]")
    return registry


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def served(tmp_path: Path, server: str, *settings: str) -> ServedRegistry:
    """The registry as a machine sees it that has made nothing itself."""
    config = toy_config(tmp_path, f"run.tracking_uri={server}", *settings)
    return served_registry(config, Store(Path(config.run.folder)), tmp_path)


def paint(model: ServedModel) -> bytes:
    """A picture by the model, which is loaded first."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(buffer, "PNG")
    painter = model.load()
    request = painter.prepare("a photo of a mug", [{"picture": buffer.getvalue(), "word": "mug"}], [0])
    (painted,) = painter.paint(request.pictures)
    return bytes(painted.picture)


def track(tmp_path: Path, config: Config) -> tuple[Tracker, Store, list[str]]:
    """A run with one stage, which starts a run of its own and reports metrics and a picture."""
    store, warnings = Store(tmp_path / "run"), list[str]()
    store.folder.mkdir()
    plan = _plan(tmp_path, store)
    step = plan[0]
    with Tracker(config, store, plan, warnings.append) as tracker:
        tracker.stage_started(step)
        tracker.stage_event("ingest", {"event": "metric", "key": "loss", "value": 2.0, "step": 1})
        tracker.stage_event("ingest", {"event": "run", "run": "mug", "settings": {"word": "mug"}})
        work = store.begin("ingest", step.ingredients.fingerprint, restart=True)
        (work.output / "curves.png").write_bytes(b"picture")
        tracker.stage_event("ingest", {"event": "picture", "key": "curves", "path": str(work.output / "curves.png")})
        result = StageResult(rows={"samples": 7}, notes={"writer": "grammar"})
        tracker.stage_finished("ingest", commit_stage(store, "ingest", result, step.ingredients, work))
    return tracker, store, warnings


def _plan(tmp_path: Path, store: Store) -> list[Step]:
    graph = toy_graph(tmp_path)
    return make_plan(graph, store, ["ingest"])


def test_a_run_is_recorded_on_the_server(tmp_path: Path, server: str) -> None:
    _, store, warnings = track(tmp_path, toy_config(tmp_path, f"run.tracking_uri={server}"))
    assert warnings == []
    client = MlflowClient(server, server)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment.artifact_location.startswith("mlflow-artifacts:/")
    found = {run.info.run_name.split()[0]: run for run in client.search_runs([experiment.experiment_id])}
    ingest = found["ingest"]
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert ingest.data.params["ingest.threads"] == "16"
    assert (ingest.data.metrics["rows.samples"], ingest.data.metrics["loss"]) == (7, 2.0)
    assert ingest.data.tags["writer"] == "grammar"
    assert {item.path for item in client.list_artifacts(ingest.info.run_id)} == {"manifest.json", "curves.png"}
    assert found["mug"].data.params == {"word": "mug"}
    assert not store.tracking_folder.exists(), "and nothing in the run folder"


def test_the_environment_names_the_server_too(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    tracker, _, warnings = track(tmp_path, toy_config(tmp_path))
    assert (tracker.uri, warnings) == (server, [])


def test_another_machine_serves_the_champion(tmp_path: Path, server: str, registry: Registry) -> None:
    """It has only the server's address: files come through its cache, once, and damaged ones again."""
    reader = served(tmp_path, server)
    versions = reader.champion()
    assert versions == Versions(model="1", concepts=((f"{NAME}-concept-mug", "1"),))
    assert paint(reader.fetch(versions))
    (weights,) = registry_cache().rglob("adapter/*.safetensors")
    before = weights.stat().st_mtime_ns
    assert reader.fetch(versions).load().concepts.names == ["mug"]
    assert weights.stat().st_mtime_ns == before
    (shared,) = registry_cache().rglob("unet/*.safetensors")
    for file in (weights, shared):
        whole = file.read_bytes()
        file.write_bytes(whole[:-1])
        assert str(reader.fetch(versions)) == "realword-micro version 1 (adapter train_adapter)"
        assert file.read_bytes() == whole


def test_a_painter_that_fetches_a_damaged_copy_fetches_it_again(
    tmp_path: Path, server: str, registry: Registry
) -> None:
    """As on another machine than that which has verified the files."""
    reader = served(tmp_path, server)
    model = reader.fetch(reader.champion())
    (weights,) = registry_cache().rglob("adapter/*.safetensors")
    for verified in list(registry_cache().rglob("verified")):  # of the version, and of its backbone
        verified.unlink()
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is damaged"):
        model.load()
    model.load()


def test_the_server_follows_the_alias(tmp_path: Path, server: str, registry: Registry) -> None:
    name = {"model_name": "moving"}
    registry.register(0.5, register=name)
    deployed: list[str] = []
    reader = served(tmp_path, server, "register.model_name=moving")

    def deploy(model: ServedModel) -> None:
        deployed.append(model.title)

    follower = ChampionFollower(registry=reader, shipped=None, deploy=deploy, say=lambda text: None)
    deployed.append(follower.choose().title)
    registry.register(0.4, register=name)  # is not the champion
    follower.check()
    registry.register(0.6, register=name)
    follower.check()
    registry.client.set_registered_model_alias("moving", "champion", "1")
    follower.check()
    assert deployed == ["moving version 1", "moving version 3", "moving version 1"]


def test_files_that_are_gone_are_said(tmp_path: Path, server: str, registry: Registry) -> None:
    registry.register(0.5, register={"model_name": "gone"})
    reader = served(tmp_path, server, "register.model_name=gone")
    versions = reader.champion()
    folder = registry.client.get_model_version_download_uri("gone", "1").removeprefix("mlflow-artifacts:/")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        _delete_artifacts(server, folder)
        with pytest.raises(StageError, match=r"cannot be fetched from mlflow-artifacts:/.*|is damaged") as error:
            reader.fetch(versions)
    assert "\n" not in str(error.value)


def _delete_artifacts(server: str, folder: str) -> None:
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    MlflowArtifactsRepository(f"mlflow-artifacts:/{folder}", tracking_uri=server).delete_artifacts()


def test_a_server_that_goes_away_is_a_warning_and_the_run_goes_on(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    relay, store, warnings = Relay(server), Store(tmp_path / "run"), list[str]()
    store.folder.mkdir()
    (step,) = _plan(tmp_path, store)
    config = toy_config(tmp_path, f"run.tracking_uri={relay.url}")
    with Tracker(config, store, [step], warnings.append) as tracker:
        assert tracker.stage_started(step) is not None
        relay.cut()
        for number in range(3):
            tracker.stage_event("ingest", {"event": "metric", "key": "loss", "value": 2.0, "step": number})
        tracker.stage_failed("ingest", PipelineError("Stage ingest: nothing is left."))
        assert tracker.stage_started(step) is None, "so that register says that there is no registry"
        tracker.stage_failed("ingest", PipelineError("Stage ingest: nothing is left."))
    (warning,) = warnings
    assert warning.startswith(f"MLflow does not record this run (the MLflow server {relay.url} cannot be used: ")


def test_serving_goes_on_while_the_server_is_away(tmp_path: Path, server: str, registry: Registry) -> None:
    relay, said = Relay(server), list[str]()
    reader = served(tmp_path, relay.url)
    follower = ChampionFollower(registry=reader, shipped=None, deploy=lambda model: None, say=said.append)
    title = follower.choose().title
    relay.cut()
    follower.check()
    follower.check()
    first, message = said
    assert first.startswith("Reading ")
    assert message.startswith(f"The MLflow server {relay.url} cannot be used: nothing listens there")
    assert f"({title} goes on answering.)" in message


def test_a_server_without_a_champion_says_how_to_make_one(tmp_path: Path, server: str) -> None:
    reader = served(tmp_path, server, "register.model_name=none-yet")
    assert reader.champion() is None
    with pytest.raises(StageError, match=rf"no champion of the model none-yet in {server} yet.*--force register"):
        reader.fetch(None)


def test_a_deleted_experiment_is_named_with_its_remedy(tmp_path: Path, server: str) -> None:
    client = MlflowClient(server, server)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    number = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    client.delete_experiment(number)
    try:
        _, _, warnings = track(tmp_path, toy_config(tmp_path, f"run.tracking_uri={server}"))
    finally:
        client.restore_experiment(number)
    (warning,) = warnings
    assert f"{server} is deleted; restore it with: mlflow experiments restore --experiment-id {number}" in warning
