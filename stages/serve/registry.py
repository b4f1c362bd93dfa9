"""The registered model that the command `serve` serves."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from model.checksums import DamagedArtifactError, verify_checksums
from stages.contract import StageError
from stages.registered_model import CHAMPION, CONCEPT_INFIX, INTERFACE
from stages.serve.served_model import ServedConcept, ServedModel, load_registered_model
from stages.serve.version_files import FetchError, VersionFiles
from stages.tracking_errors import is_missing
from stages.tracking_server import tracking_errors
from stages.tracking_uri import is_server

_T = TypeVar("_T")


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
        locate: Returns the URI of the registry as it is now; None when there is none yet. Raises StageError.
        run_folder: Keeps what clients upload.
        profile: For errors.
        place: For messages: the server or the database; "": the run folder.
    """

    name: str
    locate: Callable[[], str | None]
    run_folder: Path
    profile: str
    place: str = ""

    def __str__(self) -> str:
        return self.place or str(self.run_folder)

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
        client = mlflow.MlflowClient()
        with tracking_errors(uri):
            try:
                version = client.get_model_version_by_alias(self.name, CHAMPION).version
            except MlflowException as error:
                if is_missing(error):
                    return None
                raise
            return Versions(model=str(version), concepts=_concept_versions(client, f"{self.name}{CONCEPT_INFIX}"))

    def fetch(self, versions: Versions | None) -> ServedModel:
        """Fetch and verify versions that `champion` has returned.

        This is done once, before a painter loads it: all replicas, also those that are restarted, load the same files
        and need not verify them again.

        Raises:
            StageError: There is no champion yet, its files are damaged, or this code cannot serve it.
        """
        if versions is None:
            raise StageError(
                f"There is no {CHAMPION} of the model {self.name} in {self} yet; make one with: {self._making()}"
            )
        import mlflow

        title = f"{self.name} version {versions.model}"
        again = f"register it again with: {self._command('register')} --force register"
        client = mlflow.MlflowClient()
        try:
            with tracking_errors(mlflow.get_tracking_uri()):
                files = _files(client, self.name, versions.model)
                concepts = tuple(self._concept(client, *concept) for concept in versions.concepts)
            version = _verified(files, _verify_version)
            parts = {} if version is None else version.verified_parts(files)
        except StageError:  # the registry cannot be read
            raise
        except FetchError as error:
            raise StageError(str(error)) from error
        except Exception as error:  # of MLflow, YAML, JSON, or of what they hold: all are damage
            reason = str(error).rstrip(".") if isinstance(error, DamagedArtifactError | OSError) else repr(error)
            raise StageError(f"The registered model {title} is damaged: {reason}; {again}") from error
        if version is None:
            raise StageError(f"The registered model {title} is of another version of Realword; {again}")
        load = functools.partial(load_registered_model, files, parts, title, concepts)
        return ServedModel(title=title, adapter=version.adapter, load=load, concepts=concepts)

    def _concept(self, client: Any, name: str, version: str) -> ServedConcept:
        tags = client.get_model_version(name, version).tags
        return ServedConcept(
            name=name.removeprefix(f"{self.name}{CONCEPT_INFIX}"),
            files=_files(client, name, version),
            placeholder=tags["placeholder"],
            word=tags["word"],
            method=tags["method"],
        )

    def _making(self) -> str:
        # A run that has registered the model elsewhere would find its output up to date.
        return f"{self._command('register')} --force register" if self.place else self._command("all")

    def _command(self, stage: str) -> str:
        profile = "" if self.profile == "micro" else f" --profile {self.profile}"
        return f"python pipeline.py run --stage {stage}{profile}"


def _concept_versions(client: Any, prefix: str) -> tuple[tuple[str, str], ...]:
    """The registered models of concepts, with the versions that `champion` names."""
    found, token = [], None
    while token != "":
        page = client.search_registered_models(filter_string=f"name LIKE '{prefix}%'", page_token=token)
        # LIKE takes "_" for any character.
        names = [(model.name, model.aliases.get(CHAMPION)) for model in page if model.name.startswith(prefix)]
        found += [(name, str(version)) for name, version in names if version is not None]
        token = page.token or ""
    return tuple(sorted(found))


def _files(client: Any, name: str, version: str) -> VersionFiles:
    import mlflow
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import is_local_uri

    # Not of "models:/...", for which MLflow writes a file into the model's folder.
    uri, source = mlflow.get_tracking_uri(), client.get_model_version_download_uri(name, version)
    if is_local_uri(source, is_tracking_or_registry_uri=False):
        return VersionFiles(source=local_file_uri_to_path(source))
    return VersionFiles(source=source, server=uri if is_server(uri) else None)


@dataclass(frozen=True, kw_only=True)
class _Version:
    """What the settings of a version say.

    Attributes:
        adapter: Its fingerprint.
        parts: That the registry has, by name: the digest of each, with its checksums. Those of the hub are left out.
    """

    adapter: str
    parts: Mapping[str, Mapping[str, Any]]

    def verified_parts(self, files: VersionFiles) -> dict[str, VersionFiles]:
        """The files of each part."""
        found = {name: files.part(part["digest"]) for name, part in self.parts.items()}
        for name, part in self.parts.items():
            _verified(found[name], functools.partial(verify_checksums, expected=part["checksums"]))
        return found


def _verified(files: VersionFiles, verify: Callable[[Path], _T]) -> _T:
    """What `verify` returns for the files' folder; a copy that is damaged is fetched again.

    Raises:
        DamagedArtifactError: A file does not have the checksum that was registered with it.
        FetchError: They cannot be fetched.
    """
    is_fresh = not files.is_verified
    try:
        found = verify(files.folder())
    except Exception:
        files.discard()
        if files.is_local or is_fresh:
            raise
        found = verify(files.folder())
    files.mark_verified()
    return found


def _verify_version(folder: Path) -> _Version | None:
    """None if the server cannot call this model."""
    from mlflow.models import Model

    artifacts = Model.load(str(folder)).flavors["python_function"]["artifacts"]
    paths = {name: folder / entry["path"] for name, entry in artifacts.items()}
    settings = json.loads(paths["inference"].read_text())
    if settings.get("interface") != INTERFACE:
        return None
    for name, checksums in settings["checksums"].items():
        verify_checksums(paths[name], checksums)
    parts = settings.get("parts", {})  # a version of before has all in its own files
    return _Version(adapter=settings["adapter"], parts={name: part for name, part in parts.items() if "digest" in part})
