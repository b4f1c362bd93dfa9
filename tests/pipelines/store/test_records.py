"""MLflow's records of a run folder that was moved, copied or mounted elsewhere. MLflow itself writes and reads them."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.store.records import (
    EXPERIMENT,
    artifact_location,
    copy_for_reading,
    database_file,
    relocate,
    sqlite_uri,
)
from pipelines.store.store import Store


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a run, an artifact and a version of a registered model."""
    store = Store(tmp_path_factory.mktemp("recorded") / "run")
    store.tracking_folder.mkdir(parents=True)
    client = client_of(sqlite_uri(database_file(store)))
    experiment = client.create_experiment(EXPERIMENT, artifact_location=artifact_location(store))
    run = client.create_run(experiment, run_name="first")
    client.log_text(run.info.run_id, "kept", "note.txt")
    model = client.create_logged_model(experiment, name="mug", source_run_id=run.info.run_id)
    client.create_registered_model("mug.v1")
    client.create_model_version("mug.v1", source=model.artifact_location, run_id=run.info.run_id)
    return store.local_folder


def client_of(uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def paths_in(client: MlflowClient) -> list[str]:
    (experiment,) = [one for one in client.search_experiments() if one.name == EXPERIMENT]
    (run,) = client.search_runs([experiment.experiment_id])
    (model,) = client.search_logged_models([experiment.experiment_id])
    version = client.get_model_version("mug.v1", "1")
    return [experiment.artifact_location, run.info.artifact_uri, model.artifact_location, version.source]


@pytest.mark.parametrize("name", ["elsewhere", "a b", "c#d", "e%41f", "g?h", "ünï", "it's", "&i;j"])
def test_a_moved_folder_is_read_and_written_where_it_is(recorded: Path, tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / name / "run")
    shutil.copytree(recorded, store.local_folder)
    relocate(database_file(store), artifact_location(store))
    client = client_of(sqlite_uri(database_file(store)))
    assert all(path.startswith(artifact_location(store)) for path in paths_in(client))
    run = client.create_run(client.get_experiment_by_name(EXPERIMENT).experiment_id)
    client.log_text(run.info.run_id, "new", "second.txt")
    assert list(store.tracking_folder.rglob("second.txt"))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert not list(recorded.rglob("second.txt"))


def test_a_folder_that_was_not_moved_stays_as_it_is(recorded: Path) -> None:
    store = Store(recorded)
    before = database_file(store).read_bytes()
    relocate(database_file(store), artifact_location(store))
    assert database_file(store).read_bytes() == before


def test_readers_get_a_copy_with_the_right_paths(recorded: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "moved")
    shutil.copytree(recorded, store.local_folder)
    before = database_file(store).read_bytes()
    (tmp_path / "copy").mkdir()
    uri = copy_for_reading(store, tmp_path / "copy")
    assert uri is not None
    assert all(path.startswith(artifact_location(store)) for path in paths_in(client_of(uri)))
    assert database_file(store).read_bytes() == before


def test_a_folder_whose_name_begins_alike_is_another(recorded: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "moved")
    shutil.copytree(recorded, store.local_folder)
    other = f"{artifact_location(Store(recorded))}-of-another"
    with sqlite3.connect(database_file(store)) as connection:
        connection.execute("UPDATE runs SET artifact_uri = ?", (other,))
    relocate(database_file(store), artifact_location(store))
    assert paths_in(client_of(sqlite_uri(database_file(store))))[1] == other


def test_artifacts_on_a_server_stay_there(recorded: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "moved")
    shutil.copytree(recorded, store.local_folder)
    with sqlite3.connect(database_file(store)) as connection:
        connection.execute("UPDATE experiments SET artifact_location = 's3://bucket/a' WHERE name = ?", (EXPERIMENT,))
    relocate(database_file(store), artifact_location(store))
    assert paths_in(client_of(sqlite_uri(database_file(store))))[0] == "s3://bucket/a"


def test_before_the_first_run_there_are_no_records(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    relocate(database_file(store), artifact_location(store))
    assert copy_for_reading(store, tmp_path) is None
    assert list(tmp_path.iterdir()) == []
