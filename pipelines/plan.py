"""What a run would do, and why."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from model.backbone_layout import check_backbone_files
from model.errors import BackboneError
from pipelines.config.paths import local_paths
from pipelines.errors import UsageError
from pipelines.fingerprint import Ingredients, config_slice, ingredients_of
from pipelines.graph import Graph
from pipelines.store.store import Output, Store
from stages.config import Config
from stages.contract import StageError
from stages.declaration import Stage

#: Settings that name data from outside.
_DATA = ("ingest.metadata", "filter.pictures_folder", "multiview.folders", "evaluate.subjects_folder")


class Action(Enum):
    """What happens to a stage."""

    KEEP = "up to date"
    RUN = "runs"
    REFUSE = "damaged"  # never rebuilt silently: damage means a faulty disk, and hours of training may be lost


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage of a plan."""

    stage: Stage
    ingredients: Ingredients
    action: Action
    why: str
    output: Output | None  # the committed output of just these ingredients
    forced: bool = False


def make_plan(graph: Graph, store: Store, goals: Collection[str], forced: Collection[str] = ()) -> list[Step]:
    """One step for each of `goals` and of what they read, upstream first."""
    ingredients = ingredients_of(graph)
    latest = store.latest_outputs()
    needed = graph.upstream(goals)
    return [
        _step(stage, ingredients[name], store, latest.get(name), forced=name in forced)
        for name, stage in graph.stages.items()
        if name in needed
    ]


def check_files(config: Config, steps: Iterable[Step]) -> None:
    """Find out before anything runs whether the files and folders are there that the stages to run read from outside.

    Raises:
        UsageError: One is not there, the backbone cannot be loaded from what is there, or there are no subjects.
    """
    for step in steps:
        if step.action is Action.RUN:
            for key, path in local_paths(config_slice(config, step.stage)):
                if not path.exists():
                    where = "; docs/datasets.md says where to get one" if key in _DATA else ""
                    if key == "evaluate.subjects_folder":
                        where += ", and evaluate.subjects=0 leaves the evaluation out"
                    raise UsageError(
                        f"{key}: there is no file or folder {path}, which stage {step.stage.name} reads{where}."
                    )
                if key == "backbone.weights":
                    _check_backbone(path)
                if key == "evaluate.subjects_folder":
                    _check_subjects(path)


def blurred_references(config: Config, steps: Iterable[Step]) -> list[str]:
    """A sentence for each stage to run that stores the user's pictures smaller than the adapter's training needs."""
    own = {"ingest": config.ingest.metadata is not None, "multiview": bool(config.multiview.folders)}
    sizes = {"ingest": config.ingest.image_size, "multiview": config.multiview.image_size}
    ratio = config.curriculum.max_crop_ratio
    needed, running = config.backbone.picture_size(ratio), [one for one in steps if one.action is Action.RUN]
    return [
        f"{name}.image_size={sizes[name]} is less than the {needed} pixels that references need for full detail "
        f"(backbone.high_resolution_tiles x backbone.reference_size x curriculum.max_crop_ratio): set it to {needed}, "
        "unless disk space matters more."
        for name in (one.stage.name for one in running)
        if own.get(name) and config.backbone.stored_size(sizes[name]) < needed
    ]


def _check_backbone(path: Path) -> None:
    try:
        check_backbone_files(path)
    except BackboneError as error:
        raise UsageError(f"backbone.weights: {error}") from error


def _check_subjects(folder: Path) -> None:
    from stages.subject_lists import list_subjects  # imports Pillow

    try:
        list_subjects(folder)
    except StageError as error:
        raise UsageError(str(error)) from error


def _step(stage: Stage, ingredients: Ingredients, store: Store, latest: Output | None, *, forced: bool) -> Step:
    output = store.output(stage.name, ingredients.fingerprint)
    if forced:
        action, why = Action.RUN, "forced"
    elif output is None:
        action, why = Action.RUN, _reason(store, stage, ingredients, latest)
    elif damage := output.damage(thorough=False):
        action, why = Action.REFUSE, damage
    else:
        action, why = Action.KEEP, ""
    return Step(stage=stage, ingredients=ingredients, action=action, why=why, output=output, forced=forced)


def _reason(store: Store, stage: Stage, ingredients: Ingredients, latest: Output | None) -> str:
    if store.scratch(stage.name, ingredients.fingerprint).exists():
        return "interrupted; goes on from there"
    if latest is None:
        return "never ran"
    if latest.damage(thorough=False):
        return "its last output is damaged"
    return "; ".join(changes(latest.manifest.ingredients, ingredients)) or "its output was removed"


def changes(before: Ingredients, now: Ingredients) -> list[str]:
    """What differs between two lists of ingredients, each difference in a few words."""
    keys = sorted({*before.config, *now.config})
    values = [(key, before.config.get(key), now.config.get(key)) for key in keys]
    differences = [f"{key} {_show(old)} -> {_show(new)}" for key, old, new in values if old != new]
    found = [f"config changed: {', '.join(differences)}"] if differences else []
    for name in sorted({*before.inputs, *now.inputs}):
        if before.inputs.get(name) != now.inputs.get(name):
            found.append(f"input {name} changed")
    for path in sorted(now.files):
        if path in before.files and before.files[path] != now.files[path]:
            found.append(f"{path} changed")
    return [*found, "code changed"] if before.code != now.code else found


def _show(value: Any) -> str:
    return "null" if value is None else str(value)
