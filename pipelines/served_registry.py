"""The registry of a run folder, as the server reads it: also while runs write to it, and after the folder has moved."""

from __future__ import annotations

import functools
import sqlite3
from pathlib import Path

from pipelines.store.records import copy_for_reading, unusable_database
from pipelines.store.store import Store
from stages.config import Config
from stages.contract import StageError
from stages.serve.registry import Registry


def served_registry(config: Config, store: Store, folder: Path) -> Registry:
    """The registry with the model to serve.

    Args:
        config: Names the model.
        store: The run folder.
        folder: For a copy of the registry's database.
    """
    locate = functools.partial(_locate, store, folder)
    return Registry(
        name=config.register.model_name, locate=locate, run_folder=store.local_folder, profile=config.profile
    )


def _locate(store: Store, folder: Path) -> str | None:
    try:
        return copy_for_reading(store, folder)
    except sqlite3.Error as error:
        raise StageError(unusable_database(store, error)) from error
