"""The averages of mask quality: means with their intervals, drawn over whole subjects or scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.scoring.metrics import Interval, bootstrap_interval
from stages.evaluate.mask_quality import RECIPES
from stages.evaluate.summary import Row, clusters

#: Groups of scenes -> the number of objects in each of their scenes.
GROUPS = {"one_object": 1, "two_objects": 2}


@dataclass(frozen=True, kw_only=True)
class MaskSummary:
    """The IoU of the masks of each recipe in painted pictures.

    Attributes:
        recipes: recipe -> "iou" or "largest_iou" -> mean and interval over the steps until T_stop.
        steps: recipe -> the IoU of each step.
        pictures: Number of pictures of each recipe.
    """

    recipes: dict[str, dict[str, Interval]]
    steps: dict[str, list[Interval]]
    pictures: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class SceneMaskSummary:
    """The IoU of the masks of each recipe in rendered scenes, by the number of objects in a scene.

    Attributes:
        recipes: recipe -> "one_object" or "two_objects" -> the IoU over all timesteps, mean and interval.
        largest: recipe -> "one_object" or "two_objects" -> the largest IoU that masks of this size can have.
        timesteps: recipe -> "one_object" or "two_objects" -> timestep -> the IoU.
    """

    recipes: dict[str, dict[str, Interval]]
    largest: dict[str, dict[str, float]]
    timesteps: dict[str, dict[str, dict[int, Interval]]]


def summarize_masks(rows: Sequence[Row], mask_steps: int) -> MaskSummary:
    """Average the rows of `evaluate/masks`; the mean of a recipe covers the steps before `mask_steps`."""
    by_recipe = {recipe: [row for row in rows if row["recipe"] == recipe] for recipe in RECIPES}
    present = {recipe: found for recipe, found in by_recipe.items() if found}
    steps = range(1 + max((row["step"] for row in rows), default=-1))
    return MaskSummary(
        recipes={
            recipe: {
                name: _mean([row for row in found if row["step"] < mask_steps], name) for name in ("iou", "largest_iou")
            }
            for recipe, found in present.items()
        },
        steps={
            recipe: [_mean([row for row in found if row["step"] == step], "iou") for step in steps]
            for recipe, found in present.items()
        },
        pictures={recipe: len({(row["subject"], row["seed"]) for row in found}) for recipe, found in present.items()},
    )


def _mean(rows: Sequence[Row], name: str) -> Interval:
    return bootstrap_interval([row[name] for row in rows], clusters([row["subject"] for row in rows]))


def summarize_scene_masks(rows: Sequence[Row]) -> SceneMaskSummary:
    """Average the rows of `evaluate/scene_masks`; the bootstrap draws whole scenes."""
    recipes = [recipe for recipe in RECIPES if any(row["recipe"] == recipe for row in rows)]
    split = {
        recipe: {
            group: [row for row in rows if row["recipe"] == recipe and row["objects"] == objects]
            for group, objects in GROUPS.items()
        }
        for recipe in recipes
    }
    return SceneMaskSummary(
        recipes={
            recipe: {group: _scene_mean(found) for group, found in groups.items()} for recipe, groups in split.items()
        },
        largest={
            recipe: {group: sum(row["largest_iou"] for row in found) / len(found) for group, found in groups.items()}
            for recipe, groups in split.items()
        },
        timesteps={
            recipe: {group: _by_timestep(found) for group, found in groups.items()} for recipe, groups in split.items()
        },
    )


def _by_timestep(rows: Sequence[Row]) -> dict[int, Interval]:
    timesteps = sorted({row["timestep"] for row in rows}, reverse=True)
    return {step: _scene_mean([row for row in rows if row["timestep"] == step]) for step in timesteps}


def _scene_mean(rows: Sequence[Row]) -> Interval:
    return bootstrap_interval([row["iou"] for row in rows], clusters([str(row["scene"]) for row in rows]))
