"""Learned concepts in the model registry: a registered model for each, whose artifacts are the concept's folder.

    folder = mlflow.artifacts.download_artifacts("models:/realword-micro-concept-mug@champion")
    load_concept(pipeline, folder)

A version's tags name the outputs that it comes from, as those of an adapter do. Concepts that have not learned their
subject are not offered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository

from stages.contract import StageContext
from stages.local_copies import local_copy
from stages.register.lineage import Lineage, lineage_of
from stages.registered_model import CONCEPT_INFIX
from stages.storage import StorePath

#: Of the names that MLflow takes (`stages.register.config.ModelName`).
_LONGEST_NAME = 200


def learned_concepts(folder: StorePath) -> list[dict[str, Any]]:
    """The entries of `concepts.json` of concepts that have learned all their subjects, one for each folder."""
    by_folder: dict[str, list[dict[str, Any]]] = {}
    for entry in json.loads((folder / "concepts.json").read_text()):
        by_folder.setdefault(entry["folder"], []).append(entry)
    return [_joined(own) for own in by_folder.values() if all(entry["learned"] for entry in own)]


def _joined(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entry of a concept with all its subjects; scores are means over them."""
    texts = {key: ", ".join(entry[key] for entry in entries) for key in ("name", "word", "placeholder", "evaluation")}
    texts["verdict"] = "; ".join(dict.fromkeys(entry["verdict"] for entry in entries))
    scores = {
        key: {"mean": sum(entry["scores"][key]["mean"] for entry in entries) / len(entries)}
        for key in ("similarity", "fidelity")
    }
    return {**entries[0], **texts, "scores": scores}


def concept_model_names(model: str, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The name of each concept's registered model: the adapter's and the concept's, in letters that MLflow takes."""
    names: list[str] = []
    for entry in entries:
        own = re.sub(r"[^\w.-]+", "-", Path(entry["folder"]).name)
        name, number = f"{model}{CONCEPT_INFIX}{own}"[:_LONGEST_NAME], 1
        while name in names:
            number += 1
            name = f"{name[: _LONGEST_NAME - 10]}-{number}"
        names.append(name)
    return names


def register_concept(client: MlflowClient, name: str, entry: Mapping[str, Any], context: StageContext) -> str:
    """Store a concept's folder as a new version of `name`; returns the version's number."""
    assert context.tracking_run_id is not None
    place = f"concepts/{name}"
    client.log_artifacts(context.tracking_run_id, str(local_copy(context.inputs["customize"] / entry["folder"])), place)
    lineage = lineage_of({"customize": context.inputs["customize"]})
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        name,
        source=RunsArtifactRepository.get_underlying_uri(f"runs:/{context.tracking_run_id}/{place}"),
        run_id=context.tracking_run_id,
        tags=_tags(entry, lineage, context.config.profile),
        description=entry["verdict"],
    )
    return str(version.version)


def _tags(entry: Mapping[str, Any], lineage: Lineage, profile: str) -> dict[str, str]:
    named = {key: str(entry[key]) for key in ("method", "word", "placeholder", "evaluation")}
    tags = {"kind": "concept", "profile": profile, "score": repr(concept_score(entry)), **named}
    return tags | {f"lineage.{stage}": output["fingerprint"] for stage, output in lineage.items()}


def concept_score(entry: Mapping[str, Any]) -> float:
    """Mean subject similarity times mean prompt fidelity, as of an adapter; negative means count as 0."""
    scores = entry["scores"]
    return float(max(0.0, scores["similarity"]["mean"]) * max(0.0, scores["fidelity"]["mean"]))
