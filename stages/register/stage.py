"""Stage `register`: the adapter with its backbone, and each learned concept, in MLflow's model registry.

The alias `champion` names the version to serve. It moves to the new version when the new score is higher than the
champion's. The score is subject similarity times prompt fidelity in the arm with adapter and mask. Only scores of the
same evaluation (subjects, prompts, seeds, judge) are compared. A version's tags name every output that it comes from
(`lineage.curriculum`, ...), and its artifact `lineage.json` has their configurations, counts and metrics.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from model.checksums import folder_checksums
from stages.config import Config
from stages.contract import StageContext, StageError, StageResult
from stages.inference import backbone_location, loading_options
from stages.local_copies import local_copy
from stages.register import pyfunc_model  # so that the fingerprint of this stage covers its code
from stages.register.concepts import concept_model_names, learned_concepts, register_concept
from stages.register.lineage import Lineage, lineage_of
from stages.registered_model import CHAMPION, INTERFACE, TITLE, VERIFY_CHECKSUMS
from stages.storage import store_path, write_whole
from stages.tracking_errors import is_missing
from stages.tracking_server import tracking_errors

SCORED_ARM = "adapter_mask"
_MODEL_CODE = Path(pyfunc_model.__file__).resolve()
_PACKAGES = (
    "accelerate", "annotated-types", "diffusers", "huggingface_hub", "mlflow", "numpy", "pillow", "pydantic",
    "safetensors", "tokenizers", "torch", "transformers",
)  # fmt: skip


def run(context: StageContext) -> StageResult:
    """Write `registered.json`."""
    client = _connect(context)
    with tracking_errors(mlflow.get_tracking_uri()):
        return _register(client, context)


def _register(client: MlflowClient, context: StageContext) -> StageResult:
    name, promote = context.config.register.model_name, context.config.register.promote
    context.report.progress(0, 2, f"copying the model into the registry as {name}")
    metrics = json.loads((context.inputs["evaluate"] / "metrics.json").read_text())
    lineage, score = lineage_of(context.inputs), score_of(metrics)
    number = _log_model(context, name, lineage)
    tags = {"score": repr(score), "evaluation": metrics["evaluation"], "profile": context.config.profile}
    tags |= {f"lineage.{stage}": output["fingerprint"] for stage, output in lineage.items()}
    for key, value in tags.items():
        client.set_model_version_tag(name, number, key, value)
    context.report.progress(1, 2, f"comparing with the {CHAMPION}")
    moved, why = _move_alias(client, name, number, promote)
    if not moved:
        context.report.warning(f"{name} version {number} is not the {CHAMPION}: {why}")
    registered = {"name": name, "version": number, "alias_moved": moved, "uri": f"models:/{name}/{number}"}
    concepts = _register_concepts(client, context)
    content = json.dumps({**registered, "score": score, "why": why, "concepts": concepts}, indent=2)
    write_whole(context.output / "registered.json", content + "\n")
    notes = {"model": f"{name} version {number}", "champion": why}
    if concepts:
        notes["concepts"] = ", ".join(f"{concept['name']} version {concept['version']}" for concept in concepts)
    return StageResult(metrics={"score": score}, notes=notes)


def _register_concepts(client: MlflowClient, context: StageContext) -> list[dict[str, Any]]:
    """Register the concepts that have learned; the alias of each moves as the adapter's does."""
    settings = context.config.register
    entries = learned_concepts(context.inputs["customize"])
    found = []
    for name, entry in zip(concept_model_names(settings.model_name, entries), entries, strict=True):
        number = register_concept(client, name, entry, context)
        moved, why = _move_alias(client, name, number, settings.promote)
        uri = f"models:/{name}/{number}"
        found.append({"name": name, "version": number, "alias_moved": moved, "uri": uri, "why": why})
    return found


def _connect(context: StageContext) -> MlflowClient:
    if context.tracking_uri is None or context.tracking_run_id is None:
        raise StageError(
            "register needs MLflow's registry, but this run has no tracker; fix what its warnings name and run again."
        )
    mlflow.set_tracking_uri(context.tracking_uri)
    mlflow.set_registry_uri(context.tracking_uri)
    return MlflowClient()


def score_of(metrics: dict[str, Any]) -> float:
    """Mean subject similarity times mean prompt fidelity in the scored arm; negative means count as 0."""
    arm = metrics["arms"][SCORED_ARM]
    return max(0.0, arm["similarity"]["mean"]) * max(0.0, arm["controllability"]["mean"])


def _log_model(context: StageContext, name: str, lineage: Lineage) -> str:
    """Store the model with its weights, code, requirements and lineage; return the number of the new version."""
    with tempfile.TemporaryDirectory() as temporary, mlflow.start_run(run_id=context.tracking_run_id):
        info = mlflow.pyfunc.log_model(
            name=name.replace(".", "-"),  # of the logged model, for which MLflow allows no dot
            python_model=str(_MODEL_CODE),
            code_paths=[str(_copy_code(Path(temporary)))],
            artifacts={key: str(path) for key, path in _artifacts(context, lineage, Path(temporary)).items()},
            pip_requirements=requirements(),
            model_config={VERIFY_CHECKSUMS: True, TITLE: None},
            registered_model_name=name,
        )
    return str(info.registered_model_version)


def _artifacts(context: StageContext, lineage: Lineage, temporary: Path) -> dict[str, Path]:
    """The folders and files of the model by name; settings and lineage are written into a temporary folder."""
    config: Config = context.config
    location = backbone_location(config.backbone, context.inputs)
    folders = {"adapter": local_copy(context.inputs["train_adapter"] / "adapter")}
    if store_path(location).is_dir():
        folders["backbone"] = local_copy(store_path(location))
    settings = {
        "interface": INTERFACE,
        "backbone": location if "backbone" not in folders else None,  # a hub id
        "adapter": lineage["train_adapter"]["fingerprint"],
        "dtype": config.backbone.dtype,
        "loading": loading_options(config.backbone),
        "painting": asdict(config.inference),
        "clip": config.evaluate.clip,
        "checksums": {key: folder_checksums(folder) for key, folder in folders.items()},
    }
    files = {key: temporary / f"{key}.json" for key in ("inference", "lineage")}
    files["inference"].write_text(json.dumps(settings, indent=2) + "\n")
    files["lineage"].write_text(json.dumps(lineage, indent=2) + "\n")
    return {**files, **folders}


def requirements() -> list[str]:
    """The installed versions of the model's packages, without a local part such as "+cpu"."""
    return [f"{package}=={version(package).partition('+')[0]}" for package in _PACKAGES]


def _copy_code(temporary: Path) -> Path:
    """The modules of the package `model`, without the weights that ship with it: the backbone is an artifact."""
    package = _MODEL_CODE.parents[2] / "model"
    copy = temporary / "code" / "model"
    for module in package.rglob("*.py"):
        target = copy / module.relative_to(package)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(module, target)
    return copy


def _move_alias(client: MlflowClient, name: str, number: str, promote: bool) -> tuple[bool, str]:
    """Move the alias if the version is better; return whether it moved, and why."""
    moved, why = compare_versions(client.get_model_version(name, number), _champion(client, name), promote)
    if moved:
        client.set_registered_model_alias(name, CHAMPION, number)
    return moved, why


def _champion(client: MlflowClient, name: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if is_missing(error):
            return None
        raise


def compare_versions(version: ModelVersion, champion: ModelVersion | None, promote: bool) -> tuple[bool, str]:
    """Whether a version becomes the champion, and why, in one sentence."""
    if champion is None:
        return True, "there was no champion before"
    if promote:
        return True, "register.promote asks for it"
    again = "move the alias with --set register.promote=true"
    if champion.tags.get("evaluation") != version.tags["evaluation"]:
        return False, f"version {champion.version} was scored by another evaluation; {again}"
    new, old = float(version.tags["score"]), float(champion.tags["score"])
    if new > old:
        return True, f"its score {new:.4f} beats {old:.4f} of version {champion.version}"
    return False, f"its score {new:.4f} does not beat {old:.4f} of version {champion.version}"
