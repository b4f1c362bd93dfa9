"""Stage `register`: the adapter, and each learned concept, in MLflow's model registry.

The alias `champion` names the version to serve. It moves to the new version when the new score is higher than the
champion's. The score is subject similarity times prompt fidelity in the arm with adapter and mask. Only scores of the
same evaluation (subjects, prompts, seeds, judge) are compared; a version that was not evaluated becomes the champion
only when there is none. A version's tags name every output that it comes from
(`lineage.curriculum`, ...), and its artifact `lineage.json` has their configurations, counts and metrics.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
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
from stages.inference import loading_options
from stages.local_copies import local_copy
from stages.register import pyfunc_model  # so that the fingerprint of this stage covers its code
from stages.register.concepts import concept_model_names, learned_concepts, register_concept
from stages.register.lineage import Lineage, lineage_of
from stages.register.shared_parts import Part, part_locations, parts_location, store_parts
from stages.registered_model import CHAMPION, INTERFACE, PARTS_HERE, TITLE, VERIFY_CHECKSUMS
from stages.storage import write_whole
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
    assert context.tracking_run_id is not None
    name, promote = context.config.register.model_name, context.config.register.promote
    place = parts_location(client, context.tracking_run_id)
    parts = store_parts(part_locations(context.config, context.inputs), place, context.report, again=context.forced)
    context.report.progress(0, 2, f"copying the adapter into the registry as {name}")
    lineage, scores = lineage_of(context.inputs), _scores(context)
    number = _log_model(context, name, lineage, parts, place)
    tags = {key: value if isinstance(value, str) else repr(value) for key, value in scores.items()}
    tags |= {"profile": context.config.profile, **_part_tags(parts)}
    tags |= {f"lineage.{stage}": output["fingerprint"] for stage, output in lineage.items()}
    for key, value in tags.items():
        client.set_model_version_tag(name, number, key, value)
    context.report.progress(1, 2, f"comparing with the {CHAMPION}")
    moved, why = _move_alias(client, name, number, promote)
    if not moved:
        context.report.warning(f"{name} version {number} is not the {CHAMPION}: {why}")
    registered = {"name": name, "version": number, "alias_moved": moved, "uri": f"models:/{name}/{number}"}
    concepts = _register_concepts(client, context)
    score = scores.get("score")
    content = json.dumps({**registered, "score": score, "why": why, "concepts": concepts}, indent=2)
    write_whole(context.output / "registered.json", content + "\n")
    notes = {"model": f"{name} version {number}", "champion": why}
    if concepts:
        notes["concepts"] = ", ".join(f"{concept['name']} version {concept['version']}" for concept in concepts)
    return StageResult(metrics={} if score is None else {"score": score}, notes=notes)


def _register_concepts(client: MlflowClient, context: StageContext) -> list[dict[str, Any]]:
    """Register the concepts that have learned; the alias of each moves as the adapter's does."""
    if "customize" not in context.inputs:
        return []
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


def _scores(context: StageContext) -> dict[str, Any]:
    """The adapter's score and its evaluation's id; nothing if it was not evaluated."""
    if "evaluate" not in context.inputs:
        return {}
    metrics = json.loads((context.inputs["evaluate"] / "metrics.json").read_text())
    return {"score": score_of(metrics), "evaluation": metrics["evaluation"]}


def _part_tags(parts: Mapping[str, Part]) -> dict[str, str]:
    """Tags with the digest of each shared part, by which unused ones are found, or its revision on the hub."""
    return {f"part.{name}": part.get("digest") or f"{part['hub']}@{part['revision']}" for name, part in parts.items()}


def score_of(metrics: dict[str, Any]) -> float:
    """Mean subject similarity times mean prompt fidelity in the scored arm; negative means count as 0."""
    arm = metrics["arms"][SCORED_ARM]
    return max(0.0, arm["similarity"]["mean"]) * max(0.0, arm["controllability"]["mean"])


def _log_model(context: StageContext, name: str, lineage: Lineage, parts: Mapping[str, Part], place: str) -> str:
    """Store the adapter with its settings, code, requirements and lineage; return the number of the new version."""
    settings = _settings(context, lineage, parts, place)
    with tempfile.TemporaryDirectory() as temporary, mlflow.start_run(run_id=context.tracking_run_id):
        info = mlflow.pyfunc.log_model(
            name=name.replace(".", "-"),  # of the logged model, for which MLflow allows no dot
            python_model=str(_MODEL_CODE),
            code_paths=[str(_copy_code(Path(temporary)))],
            artifacts=_artifacts(context, {"inference": settings, "lineage": lineage}, Path(temporary)),
            pip_requirements=requirements(),
            model_config={VERIFY_CHECKSUMS: True, TITLE: None, PARTS_HERE: {}},
            registered_model_name=name,
        )
    return str(info.registered_model_version)


def _adapter(context: StageContext) -> Path:
    return local_copy(context.inputs["train_adapter"] / "adapter")


def _artifacts(context: StageContext, contents: Mapping[str, Any], temporary: Path) -> dict[str, str]:
    """The adapter's folder, and a file for each of the contents, by name."""
    files = {key: temporary / f"{key}.json" for key in contents}
    for key, file in files.items():
        file.write_text(json.dumps(contents[key], indent=2) + "\n")
    return {key: str(path) for key, path in {**files, "adapter": _adapter(context)}.items()}


def _settings(context: StageContext, lineage: Lineage, parts: Mapping[str, Part], place: str) -> dict[str, Any]:
    """How the model is loaded and paints; see `stages.register.pyfunc_model`."""
    config: Config = context.config
    return {
        "interface": INTERFACE,
        "parts": parts,
        "parts_place": place,
        "adapter": lineage["train_adapter"]["fingerprint"],
        "dtype": config.backbone.dtype,
        "loading": loading_options(config.backbone),
        "painting": asdict(config.inference),
        "clip": config.evaluate.clip,
        "checksums": {"adapter": folder_checksums(_adapter(context))},
    }


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
    if "score" not in version.tags:
        return False, f"it was not evaluated; {again}"
    if "score" not in champion.tags:
        return False, f"version {champion.version} was not evaluated; {again}"
    if champion.tags.get("evaluation") != version.tags["evaluation"]:
        return False, f"version {champion.version} was scored by another evaluation; {again}"
    new, old = float(version.tags["score"]), float(champion.tags["score"])
    if new > old:
        return True, f"its score {new:.4f} beats {old:.4f} of version {champion.version}"
    return False, f"its score {new:.4f} does not beat {old:.4f} of version {champion.version}"
