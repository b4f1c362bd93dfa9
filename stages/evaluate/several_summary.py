"""Several subjects and masks in numbers: means with their intervals, over whole pairs or subjects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from model.metrics import Interval, bootstrap_interval
from stages.evaluate.mask_quality import RECIPES
from stages.evaluate.summary import Row, clusters

#: What is painted of a pair, in the order in which it is shown.
TASKS = ("text_only", "many_to_many", "one_to_many", "round_1", "round_2", "round_3")


@dataclass(frozen=True, kw_only=True)
class SeveralSummary:
    """Likeness of each subject's region to its own other views and to those of the pair's other subject.

    Attributes:
        tasks: task -> "similarity", "other_similarity" or "margin" (the first minus the second) -> mean and interval.
        gains: "many_to_many" or "one_to_many" -> the same, each picture minus the one from text alone.
        pairs: Number of pairs.
    """

    tasks: dict[str, dict[str, Interval]]
    gains: dict[str, dict[str, Interval]]
    pairs: int


@dataclass(frozen=True, kw_only=True)
class MaskSummary:
    """How well the masks of each recipe fit.

    Attributes:
        recipes: recipe -> "iou" or "largest_iou" -> mean and interval over the steps until T_stop, which are in use.
        steps: recipe -> the IoU of each step, all of them.
        pictures: Number of pictures of each recipe.
    """

    recipes: dict[str, dict[str, Interval]]
    steps: dict[str, list[Interval]]
    pictures: dict[str, int]


def summarise_several(rows: Sequence[Row]) -> SeveralSummary:
    """Average the rows of `evaluate/several`."""
    by_task = {task: [_with_margin(row) for row in rows if row["task"] == task] for task in TASKS}
    plain = {(row["pair"], row["subject"]): row for row in by_task["text_only"]}
    return SeveralSummary(
        tasks={task: _intervals(found) for task, found in by_task.items() if found},
        gains={
            task: _intervals([_minus(row, plain[row["pair"], row["subject"]]) for row in by_task[task]])
            for task in ("many_to_many", "one_to_many")
            if by_task[task]
        },
        pairs=len({row["pair"] for row in rows}),
    )


def _with_margin(row: Row) -> dict[str, Any]:
    return {**row, "margin": row["similarity"] - row["other_similarity"]}


_SIMILARITIES = ("similarity", "other_similarity", "margin")


def _minus(first: Row, second: Row) -> dict[str, Any]:
    return {"pair": first["pair"], **{name: first[name] - second[name] for name in _SIMILARITIES}}


def _intervals(rows: Sequence[Row]) -> dict[str, Interval]:
    pairs = clusters([row["pair"] for row in rows])
    return {name: bootstrap_interval([row[name] for row in rows], pairs) for name in _SIMILARITIES}


def summarise_masks(rows: Sequence[Row], mask_steps: int) -> MaskSummary:
    """Average the rows of `evaluate/masks`; steps before `mask_steps` count for a recipe as a whole."""
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


def several_as_json(several: SeveralSummary, masks: MaskSummary) -> dict[str, Any]:
    """Plain numbers and names, for `metrics.json`."""
    return {"several": asdict(several), "masks": asdict(masks)}


def several_flat(several: SeveralSummary, masks: MaskSummary) -> dict[str, float]:
    """One name a number, for the tracker: "many_to_many/similarity", "mask_cross_self/iou"."""
    numbers = {f"{task}/{name}": found.mean for task, values in several.tasks.items() for name, found in values.items()}
    return numbers | {f"mask_{recipe}/iou": found["iou"].mean for recipe, found in masks.recipes.items()}
