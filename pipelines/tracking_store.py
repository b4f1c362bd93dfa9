"""Where a run's records and registered models are: on an MLflow server, in a database, or in the run folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from pipelines.config.words import describe, show
from pipelines.errors import UsageError
from pipelines.plan import Action, Step
from pipelines.store.records import artifact_location, database_file, sqlite_uri
from pipelines.store.store import Store
from stages.config import Config
from stages.settings import TrackingUri
from stages.storage import is_remote
from stages.tracking_uri import checked_tracking_uri, is_server, masked

VARIABLE = "MLFLOW_TRACKING_URI"


@dataclass(frozen=True, kw_only=True)
class TrackingStore:
    """MLflow's tracking store, which is its model registry as well.

    Attributes:
        uri: Of MLflow's client; a database's may have a password in it.
        artifacts: Where an experiment that the run makes keeps its files; None: where the server says.
        in_run_folder: Whether it is an SQLite file there, which moves with the folder.
    """

    uri: str
    artifacts: str | None
    in_run_folder: bool

    def __str__(self) -> str:
        return masked(self.uri)


def tracking_store(config: Config, store: Store) -> TrackingStore | None:
    """The store of `run.tracking_uri`, else of MLFLOW_TRACKING_URI, else an SQLite file in the run folder.

    None when neither is set and the run folder is in an object store: no database can lie there.

    Raises:
        UsageError: MLFLOW_TRACKING_URI is not what MLflow can use.
    """
    uri = configured_uri(config)
    if uri is not None:
        artifacts = None if is_server(uri) else artifact_location(store)
        return TrackingStore(uri=uri, artifacts=artifacts, in_run_folder=False)
    if is_remote(store.folder):
        return None
    uri = sqlite_uri(database_file(store))
    return TrackingStore(uri=uri, artifacts=artifact_location(store), in_run_folder=True)


def configured_uri(config: Config) -> str | None:
    """The URI of the configuration, else of the environment; None when neither names one.

    Raises:
        UsageError: That of the environment is not what MLflow can use.
    """
    if config.run.tracking_uri is not None:
        return config.run.tracking_uri
    uri = os.environ.get(VARIABLE, "").strip()
    if not uri:
        return None
    try:
        return checked_tracking_uri(uri)
    except ValueError as error:
        raise UsageError(f"{VARIABLE} takes {describe(TrackingUri)}, not {show(uri)}: {error}.") from error


def check_registry(config: Config, store: Store, steps: Iterable[Step]) -> None:
    """Find out before anything runs whether there is a place for the registry that stage `register` needs.

    Raises:
        UsageError: There is none, or the URI of the environment is not what MLflow can use.
    """
    registers = any(step.stage.name == "register" and step.action is Action.RUN for step in steps)
    if tracking_store(config, store) is None and registers:
        raise UsageError(f"Stage register needs MLflow's registry, but {no_tracking_store(store)}.")


def no_tracking_store(store: Store) -> str:
    """Why there are no records, for the user."""
    return (
        f"the run folder {store.folder} is in an object store, where no database can lie; set run.tracking_uri or "
        f"{VARIABLE} to an MLflow server or a database"
    )
