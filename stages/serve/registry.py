"""The registered model that the command `serve` serves."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

from model.checksums import DamagedArtifactError, verify_checksums
from stages.contract import StageError
from stages.registered_model import CHAMPION, INTERFACE
from stages.serve.served_model import ServedModel, load_registered_model


def find_champion(name: str, tracking_uri: str | None, run_folder: Path, profile: str) -> ServedModel:
    """Fetch and verify the version that the alias `champion` names now.

    This is done once, before the server starts: all replicas, also those that are restarted, load the same files and
    need not verify them again.

    Raises:
        StageError: There is no champion yet, its files are damaged, or this code cannot serve it.
    """
    command = "python pipeline.py run --stage {}" + ("" if profile == "micro" else f" --profile {profile}")
    version = None if tracking_uri is None else _champion_version(name, tracking_uri)
    if version is None:
        make = command.format("all")
        raise StageError(f"There is no {CHAMPION} of the model {name} in {run_folder} yet; make one with: {make}")
    import mlflow

    title = f"{name} version {version}"
    again = f"register it again with: {command.format('register')} --force register"
    try:
        # Not of "models:/...", for which MLflow writes a file into the model's folder.
        location = mlflow.MlflowClient().get_model_version_download_uri(name, version)
        folder = Path(mlflow.artifacts.download_artifacts(location))
        can_serve = _verify(folder)
    except (DamagedArtifactError, OSError, json.JSONDecodeError, mlflow.MlflowException) as error:
        reason = str(error).rstrip(".")
        raise StageError(f"The registered model {title} is damaged: {reason}; {again}") from error
    if not can_serve:
        raise StageError(f"The registered model {title} is of another version of Realword; {again}")
    return ServedModel(name=name, title=title, load=functools.partial(load_registered_model, str(folder), title))


def _champion_version(name: str, tracking_uri: str) -> str | None:
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    try:
        return str(mlflow.MlflowClient().get_model_version_by_alias(name, CHAMPION).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _verify(folder: Path) -> bool:
    """Whether the server can call this model.

    Raises:
        DamagedArtifactError: A file does not have the checksum that was registered with it.
    """
    from mlflow.models import Model

    artifacts = Model.load(str(folder)).flavors["python_function"]["artifacts"]
    paths = {name: folder / entry["path"] for name, entry in artifacts.items()}
    settings = json.loads(paths["inference"].read_text())
    if settings.get("interface") != INTERFACE:
        return False
    for name, checksums in settings["checksums"].items():
        verify_checksums(paths[name], checksums)
    return True
