"""The registered model that the command `serve` serves."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checksums import DamagedArtifactError, verify_checksums
from stages.contract import StageError
from stages.registered_model import CHAMPION, CONCEPT_INFIX, INTERFACE
from stages.serve.served_model import ServedConcept, ServedModel, load_registered_model


@dataclass(frozen=True, kw_only=True)
class Versions:
    """What is served.

    Attributes:
        model: The version of the model.
        concepts: The registered models of its concepts with their versions.
    """

    model: str
    concepts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Registry:
    """The versions of a model in MLflow's registry, which may change at any time.

    Attributes:
        name: Of the model.
        locate: Returns the URI of the registry as it is now; None when there is none yet.
        run_folder: For errors.
        profile: For errors.
    """

    name: str
    locate: Callable[[], str | None]
    run_folder: Path
    profile: str

    def champion(self) -> Versions | None:
        """The versions that the alias `champion` names now, of the model and its concepts; None if there is no model.

        Raises:
            StageError: The registry cannot be read.
        """
        uri = self.locate()
        if uri is None:
            return None
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        import mlflow
        from mlflow.exceptions import MlflowException

        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        try:
            client = mlflow.MlflowClient()
            version = client.get_model_version_by_alias(self.name, CHAMPION).version
            return Versions(model=str(version), concepts=_concept_versions(client, f"{self.name}{CONCEPT_INFIX}"))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise StageError(f"The registry of {self.run_folder} cannot be read: {reason}.") from error

    def fetch(self, versions: Versions | None) -> ServedModel:
        """Fetch and verify versions that `champion` has returned.

        This is done once, before a painter loads it: all replicas, also those that are restarted, load the same files
        and need not verify them again.

        Raises:
            StageError: There is no champion yet, its files are damaged, or this code cannot serve it.
        """
        if versions is None:
            make = self._command("all")
            raise StageError(
                f"There is no {CHAMPION} of the model {self.name} in {self.run_folder} yet; make one with: {make}"
            )
        import mlflow

        title = f"{self.name} version {versions.model}"
        again = f"register it again with: {self._command('register')} --force register"
        try:
            # Not of "models:/...", for which MLflow writes a file into the model's folder.
            client = mlflow.MlflowClient()
            folder = _download(client, self.name, versions.model)
            concepts = tuple(self._concept(client, *concept) for concept in versions.concepts)
            can_serve = _verify(folder)
        except Exception as error:  # of MLflow, YAML, JSON, or of what they hold: all are damage
            reason = str(error).rstrip(".") if isinstance(error, DamagedArtifactError | OSError) else repr(error)
            raise StageError(f"The registered model {title} is damaged: {reason}; {again}") from error
        if not can_serve:
            raise StageError(f"The registered model {title} is of another version of Realword; {again}")
        return ServedModel(
            title=title, load=functools.partial(load_registered_model, str(folder), title, concepts), concepts=concepts
        )

    def _concept(self, client: Any, name: str, version: str) -> ServedConcept:
        tags = client.get_model_version(name, version).tags
        return ServedConcept(
            name=name.removeprefix(f"{self.name}{CONCEPT_INFIX}"),
            folder=str(_download(client, name, version)),
            placeholder=tags["placeholder"],
            word=tags["word"],
            method=tags["method"],
        )

    def _command(self, stage: str) -> str:
        profile = "" if self.profile == "micro" else f" --profile {self.profile}"
        return f"python pipeline.py run --stage {stage}{profile}"


def _concept_versions(client: Any, prefix: str) -> tuple[tuple[str, str], ...]:
    """The registered models of concepts, with the versions that `champion` names."""
    found, token = [], None
    while token != "":
        page = client.search_registered_models(page_token=token)
        names = [(model.name, model.aliases.get(CHAMPION)) for model in page if model.name.startswith(prefix)]
        found += [(name, str(version)) for name, version in names if version is not None]
        token = page.token or ""
    return tuple(sorted(found))


def _download(client: Any, name: str, version: str) -> Path:
    import mlflow

    return Path(mlflow.artifacts.download_artifacts(client.get_model_version_download_uri(name, version)))


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
