"""Which registered model to serve, and whether its files are whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

from model.checksums import DamagedArtifactError, verify_checksums
from stages.contract import StageError

ALIAS = "champion"
_SQLITE = "sqlite:///"


def champion(name: str, tracking_uri: str, run_folder: Path, profile: str) -> str:
    """The number of the version that the alias `champion` names now.

    It is looked up once: all replicas, also those that are restarted, serve the same version.

    Raises:
        StageError: There is none yet (names the command that makes one), or its files are damaged.
    """
    flag = "" if profile == "micro" else f" --profile {profile}"
    missing = StageError(
        f"There is no {ALIAS} of the model {name} in {run_folder} yet; make one with: "
        f"python pipeline.py run --stage all{flag}"
    )
    if tracking_uri.startswith(_SQLITE) and not Path(tracking_uri.removeprefix(_SQLITE)).is_file():
        raise missing  # a look-up would create the database
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    try:
        version = str(mlflow.MlflowClient().get_model_version_by_alias(name, ALIAS).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise missing from error
        raise
    _verify(Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{version}")), f"{name} version {version}")
    return version


def _verify(folder: Path, model: str) -> None:
    """Compare the model's files with the checksums that were registered with it."""
    from mlflow.models import Model

    flavor = Model.load(str(folder)).flavors["python_function"]
    places = {key: folder / entry["path"] for key, entry in flavor["artifacts"].items()}
    try:
        settings = json.loads(places["inference"].read_text())
        for key, checksums in settings["checksums"].items():
            verify_checksums(places[key], checksums)
    except (DamagedArtifactError, FileNotFoundError, json.JSONDecodeError) as error:
        remedy = "run the stage register again (--force register)"
        raise StageError(f"The registered model {model} is damaged: {str(error).rstrip('.')}; {remedy}.") from error
