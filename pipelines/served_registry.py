"""The registry that the command `serve` reads: MLflow's server or database, or that of the run folder."""

from __future__ import annotations

import functools
import sqlite3
from pathlib import Path

from pipelines.store.records import EXPERIMENT, copy_for_reading, unusable_database
from pipelines.store.store import Store
from pipelines.tracking_store import no_tracking_store, tracking_store
from stages.config import Config
from stages.contract import StageError
from stages.serve.registry import Registry
from stages.tracking_server import check_tracking_server


def served_registry(config: Config, store: Store, folder: Path) -> Registry:
    """The registry with the model to serve.

    Args:
        config: Names the model.
        store: The run folder.
        folder: For a copy of the database in the run folder, which may move, or be on a read-only disk.

    Raises:
        StageError: The run folder is in an object store, and no server or database is named.
    """
    place = tracking_store(config, store)
    if place is None:
        raise StageError(f"There is no registry: {no_tracking_store(store)}.")
    in_folder = place.in_run_folder
    return Registry(
        name=config.register.model_name,
        locate=functools.partial(_copy, store, folder) if in_folder else functools.partial(_checked, place.uri),
        run_folder=store.local_folder,
        profile=config.profile,
        place="" if in_folder else str(place),
    )


def _copy(store: Store, folder: Path) -> str | None:
    try:
        return copy_for_reading(store, folder)
    except sqlite3.Error as error:
        raise StageError(unusable_database(store, error)) from error


def _checked(uri: str) -> str:
    check_tracking_server(uri, EXPERIMENT)
    return uri
