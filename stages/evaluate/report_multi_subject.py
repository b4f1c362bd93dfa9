"""The report's parts about multi-subject and multi-round generation and mask quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.scoring.metrics import Interval
from stages.evaluate.formatting import difference, is_significant, mean, score
from stages.evaluate.grids import data_uri, picture_grid
from stages.evaluate.mask_quality import RECIPES
from stages.evaluate.mask_summary import MaskSummary, SceneMaskSummary
from stages.evaluate.multi_subject_summary import TASKS, MultiSubjectSummary
from stages.evaluate.summary import Row

TASK_NAMES = {
    "text_only": "Text only",
    "many_to_many": "Many2Many",
    "one_to_many": "One2Many",
    "round_1": "Round 1",
    "round_2": "Round 2",
    "round_3": "Round 3",
}
_TASK_TEXTS = {
    "text_only": "The same prompt, noise and masks, with the strength of the adapter set to 0.",
    "many_to_many": "One reference and one mask for each of the two words.",
    "one_to_many": "One reference that shows both subjects, and one mask for each word.",
    "round_1": "The reference stands for the class word.",
    "round_2": "The reference is the picture of round 1; its phrase adds one word to the class word.",
    "round_3": "The reference is the picture of round 2; its phrase adds two words to the class word.",
}
RECIPE_NAMES = {
    "cross_all": "All cross-attention",
    "cross": "Low-resolution cross-attention",
    "cross_self_all": "Low-resolution cross-attention x all self-attention",
    "cross_self": "Low-resolution cross-attention x high-resolution self-attention",
}
_GRID_PAIRS = 8
_CHART = (640, 220)  # width and height of the chart of the steps, in SVG units


def describe_multi_subject(summary: MultiSubjectSummary, rows: Sequence[Row]) -> dict[str, Any] | None:
    """The table and the pictures of multi-subject generation; None if nothing was painted."""
    if not rows:
        return None
    pairs = list(dict.fromkeys(row["pair"] for row in rows))
    return {
        "pairs": summary.pairs,
        "findings": [finding for task in summary.gains for finding in _findings(summary, task)],
        "tasks": [
            {"name": TASK_NAMES[task], "text": _TASK_TEXTS[task], "cells": list(found.values())}
            for task, found in summary.tasks.items()
        ],
        "cases": [_describe_pair([row for row in rows if row["pair"] == pair]) for pair in pairs],
    }


def _findings(summary: MultiSubjectSummary, task: str) -> list[str]:
    """Whether a region is more similar to its own subject than to the other one, and than in the text-only picture."""
    name, means, gain = TASK_NAMES[task], summary.tasks[task], summary.gains[task]["similarity"]
    own, other = mean(means["similarity"].mean), mean(means["other_similarity"].mean)
    return [
        f"{name}: the similarity of a region is {own} to its own subject and {other} to the other subject "
        f"({_comparison(means['margin'])}).",
        f"{name}: the similarity to its own subject compared with the text-only picture: {_comparison(gain)}.",
    ]


def _comparison(interval: Interval) -> str:
    return ("" if is_significant(interval) else "no measurable difference, ") + difference(interval)


def _describe_pair(rows: Sequence[Row]) -> dict[str, Any]:
    """The picture of each task with the scores of its regions, and the references and masks of Many2Many."""
    by_task = {task: [row for row in rows if row["task"] == task] for task in TASKS}
    both, shared = by_task["many_to_many"], by_task["one_to_many"]
    cells = [_cell(f"{row['phrase']}: reference", row["reference"]) for row in both]
    cells += [_cell("Both: reference", row["reference"]) for row in shared[:1]]
    for task, found in by_task.items():
        cells += [_cell(TASK_NAMES[task], row["picture"], found, row["prompt"]) for row in found[:1]]
        if task == "many_to_many":
            cells += [_cell(f"{row['phrase']}: mask", row["mask"]) for row in both]
    return {"name": rows[0]["pair"], "prompt": both[0]["prompt"], "cells": cells}


def _cell(name: str, picture: bytes, regions: Sequence[Row] = (), prompt: str = "") -> dict[str, Any]:
    scores = [f"{row['phrase']} {score(row['similarity'])} / {score(row['other_similarity'])}" for row in regions]
    return {"name": name, "uri": data_uri(picture), "prompt": prompt, "scores": scores}


def describe_masks(summary: MaskSummary, rows: Sequence[Row], mask_steps: int) -> dict[str, Any] | None:
    """The table of the recipes, the chart of their IoU over the steps, and their masks; None if nothing was painted."""
    if not rows:
        return None
    shown = [row for row in rows if row["mask"] is not None]
    subjects = list(dict.fromkeys(row["subject"] for row in shown))
    return {
        "mask_steps": mask_steps,
        "recipes": [
            _describe_recipe(recipe, rows) | _recipe_means(summary, recipe, mask_steps) for recipe in summary.recipes
        ],
        "chart": {"width": _CHART[0], "height": _CHART[1]},
        "stop": _x_of_step(mask_steps - 1, max(row["step"] for row in rows) + 1),
        "cases": [_describe_masks_of([row for row in shown if row["subject"] == subject]) for subject in subjects],
    }


def _describe_recipe(recipe: str, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "number": RECIPES.index(recipe) + 1,
        "name": RECIPE_NAMES[recipe],
        "grids": _grids(next(row for row in rows if row["recipe"] == recipe)),
    }


def _recipe_means(summary: MaskSummary, recipe: str, mask_steps: int) -> dict[str, Any]:
    means, steps = summary.recipes[recipe], summary.steps[recipe]
    return {
        "iou": means["iou"],
        "largest": means["largest_iou"],
        "first": steps[0],
        "stop": steps[min(mask_steps, len(steps)) - 1],
        "last": steps[-1],
        "pictures": summary.pictures[recipe],
        "points": _points([step.mean for step in steps]),
    }


def describe_scene_masks(summary: SceneMaskSummary, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A row for each recipe in the table of rendered scenes; none if nothing was measured."""
    return [
        {
            **_describe_recipe(recipe, rows),
            "groups": [
                {
                    "iou": iou,
                    "largest": summary.largest[recipe][group],
                    "timesteps": ", ".join(
                        f"{timestep}: {score(interval.mean)}"
                        for timestep, interval in summary.timesteps[recipe][group].items()
                    ),
                }
                for group, iou in groups.items()
            ],
        }
        for recipe, groups in summary.recipes.items()
    ]


def _grids(row: Row) -> str:
    cross_attention, self_attention = (
        ", ".join(f"{side} x {side}" for side in row[key]) for key in ("cross_grids", "self_grids")
    )
    return f"cross-attention {cross_attention}; self-attention {self_attention or 'none'}"


def _x_of_step(step: int, steps: int) -> float:
    return round(_CHART[0] * step / max(1, steps - 1), 1)


def _points(values: Sequence[float]) -> str:
    """An SVG polyline of values in [0, 1] over the chart's width."""
    points = [(_x_of_step(step, len(values)), round(_CHART[1] * (1 - value), 1)) for step, value in enumerate(values)]
    return " ".join(f"{x},{y}" for x, y in points)


def _describe_masks_of(rows: Sequence[Row]) -> dict[str, Any]:
    ordered = sorted(rows, key=lambda row: RECIPES.index(row["recipe"]))
    cells = []
    for row in ordered:
        name = f"No. {RECIPES.index(row['recipe']) + 1}"
        cells += [_cell(name, row["picture"]), _cell(f"Mask, IoU {score(row['iou'])}", row["mask"])]
    return {"name": rows[0]["subject"], "prompt": rows[0]["prompt"], "cells": cells}


def write_grids(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Write `multi_subject.png` and `rounds.png`; nothing without rows."""
    pairs = list(dict.fromkeys(row["pair"] for row in rows))[:_GRID_PAIRS]
    if not pairs:
        return []
    multi_subject = [_column([row for row in rows if row["pair"] == pair]) for pair in pairs]
    prompts = [next(row["prompt"] for row in rows if row["pair"] == pair) for pair in pairs]
    both = {"first": "First\nreference", "second": "Second\nreference", "text_only": "Text only"}
    picture_grid(multi_subject, prompts, {**both, "many_to_many": "Many2Many"}, folder / "multi_subject.png")
    rounds = {task: TASK_NAMES[task] for task in TASKS if task.startswith("round")}
    phrases = [_rounds_caption([row for row in rows if row["pair"] == pair]) for pair in pairs]
    picture_grid(multi_subject, phrases, {"first": "Reference", **rounds}, folder / "rounds.png")
    return [folder / "multi_subject.png", folder / "rounds.png"]


def _column(rows: Sequence[Row]) -> Mapping[str, bytes]:
    first, second = (row["reference"] for row in rows if row["task"] == "many_to_many")
    return {"first": first, "second": second, **{row["task"]: row["picture"] for row in rows}}


def _rounds_caption(rows: Sequence[Row]) -> str:
    return ", ".join(row["phrase"] for row in rows if row["task"].startswith("round"))
