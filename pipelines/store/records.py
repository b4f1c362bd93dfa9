"""MLflow's records of a run folder: `mlflow/mlflow.db`, and the artifacts beside it.

MLflow stores the absolute path of every artifact. When the run folder was moved, copied or mounted elsewhere, the
paths lead to where it was: new versions of a model would be written there, and none could be read. So a run first
makes the paths those of the folder, and the server reads a copy of the database whose paths are right.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from pipelines.store.store import Store
from stages.storage import is_remote

EXPERIMENT = "realword"

#: Where MLflow's schema has paths of artifacts.
_COLUMNS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}


def database_file(store: Store) -> Path:
    """MLflow's database."""
    return store.tracking_folder / "mlflow.db"


def artifact_location(store: Store) -> str:
    """The folder of the files of runs and models, as MLflow stores it: with "%" escaped; a URI as it is."""
    if is_remote(store.folder):
        return f"{str(store.folder).rstrip('/')}/mlflow/artifacts"
    return str((store.tracking_folder / "artifacts").absolute()).replace("%", "%25")


def sqlite_uri(database: Path) -> str:
    """The URI of a database for MLflow. Characters that have a meaning in a URI are escaped.

    The driver is named, because from a URI that starts with "sqlite:///" MLflow makes the folder of the escaped path.
    """
    return f"sqlite+pysqlite:///{quote(str(database.absolute()))}"


def unusable_database(store: Store, error: sqlite3.Error) -> str:
    """A sentence for the user."""
    return f"MLflow's database {database_file(store)} cannot be used ({error}); if a program has it open, end that."


def relocate(database: Path, location: str) -> None:
    """Make the paths in a database, if there is one, those of an artifact location.

    Raises:
        sqlite3.Error: The database is damaged, or another process keeps it locked.
    """
    if not database.is_file():
        return
    with closing(sqlite3.connect(database)) as connection, connection:
        before = _recorded_location(connection)
        if before is None or before == location or "://" in before:  # such as s3://
            return
        for table, columns in _COLUMNS.items():
            for column in columns:
                connection.execute(
                    f"UPDATE {table} SET {column} = ?1 || substr({column}, length(?2) + 1) "
                    f"WHERE {column} = ?2 OR substr({column}, 1, length(?2) + 1) = ?2 || '/'",
                    (location, before),
                )


def copy_for_reading(store: Store, folder: Path) -> str | None:
    """Copy the database into `folder`, with the right paths; returns the copy's URI, None when there is no database.

    The original may be on a read-only disk, or in use under another path.

    Raises:
        sqlite3.Error: The database is damaged, or another process keeps it locked.
    """
    original, copy = database_file(store), folder / "mlflow.db"
    if not original.is_file():
        return None
    with (
        closing(sqlite3.connect(f"file:{quote(str(original))}?mode=ro", uri=True)) as source,
        closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)
    relocate(copy, artifact_location(store))
    return sqlite_uri(copy)


def _recorded_location(connection: sqlite3.Connection) -> str | None:
    """Where the database says that the artifacts are; None when nothing is recorded yet."""
    try:
        row = connection.execute("SELECT artifact_location FROM experiments WHERE name = ?", (EXPERIMENT,)).fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return None
        raise
    return None if row is None else str(row[0])
