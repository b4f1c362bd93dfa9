"""The report's parts about several subjects in a picture, rounds, and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.scoring.metrics import Interval
from stages.evaluate.grids import data_uri, picture_grid
from stages.evaluate.mask_quality import RECIPES
from stages.evaluate.multi_subject_summary import TASKS, MaskSummary, MultiSubjectSummary, SceneMaskSummary
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
    "text_only": "The same words, noise and regions, with the adapter's strength at 0.",
    "many_to_many": "A reference and a mask for each of the two words.",
    "one_to_many": "One reference that shows both, and a mask for each word.",
    "round_1": "The reference stands for the class word.",
    "round_2": "Round 1's picture is the reference, and its phrase has one word more.",
    "round_3": "Round 2's picture is the reference, and its phrase has two words more.",
}
RECIPE_NAMES = {
    "cross_all": "All cross-attention",
    "cross": "Low cross-attention",
    "cross_self_all": "Low cross-attention x all self-attention",
    "cross_self": "Low cross-attention x high self-attention",
}
_GRID_PAIRS = 8
_CHART = (640, 220)  # width and height of the step chart's plane, in its own units


def describe_multi_subject(summary: MultiSubjectSummary, rows: Sequence[Row]) -> dict[str, Any] | None:
    """The tables and pictures of several subjects; None when nothing was painted."""
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
    """Whether each region leans to its own subject, and whether it does so more than text alone makes it."""
    name, found, gain = TASK_NAMES[task], summary.tasks[task], summary.gains[task]["similarity"]
    own, other = found["similarity"].mean, found["other_similarity"].mean
    return [
        f"{name}: a region's likeness is {own:.3f} to its own subject and {other:.3f} to the other one: "
        f"{_difference(found['margin'])}.",
        f"{name}: the likeness to its own subject, less that of the picture from text alone: {_difference(gain)}.",
    ]


def _difference(found: Interval) -> str:
    verdict = "" if found.low > 0 or found.high < 0 else "no measurable difference, "
    return f"{verdict}{found.mean:+.3f}, 95 % interval {found.low:+.3f} to {found.high:+.3f}"


def _describe_pair(rows: Sequence[Row]) -> dict[str, Any]:
    """Every task's picture, once, with what its regions resemble, and the references and masks of Many2Many."""
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
    scores = [f"{row['phrase']} {row['similarity']:.2f} / {row['other_similarity']:.2f}" for row in regions]
    return {"name": name, "uri": data_uri(picture), "prompt": prompt, "scores": scores}


def describe_masks(summary: MaskSummary, rows: Sequence[Row], mask_steps: int) -> dict[str, Any] | None:
    """The recipes' table, their IoU over the steps, and a strip of masks; None when nothing was painted."""
    if not rows:
        return None
    shown = [row for row in rows if row["mask"] is not None]
    subjects = list(dict.fromkeys(row["subject"] for row in shown))
    return {
        "mask_steps": mask_steps,
        "recipes": [
            {
                "key": recipe,
                "number": RECIPES.index(recipe) + 1,
                "name": RECIPE_NAMES[recipe],
                "grids": _grids(next(row for row in rows if row["recipe"] == recipe)),
                "iou": found["iou"],
                "largest": found["largest_iou"],
                "first": summary.steps[recipe][0],
                "stop": summary.steps[recipe][min(mask_steps, len(summary.steps[recipe])) - 1],
                "last": summary.steps[recipe][-1],
                "pictures": summary.pictures[recipe],
                "points": _points([step.mean for step in summary.steps[recipe]]),
            }
            for recipe, found in summary.recipes.items()
        ],
        "chart": {"width": _CHART[0], "height": _CHART[1]},
        "stop": _across(mask_steps - 1, max(row["step"] for row in rows) + 1),
        "cases": [_describe_masks_of([row for row in shown if row["subject"] == subject]) for subject in subjects],
    }


def describe_scene_masks(summary: SceneMaskSummary, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line a recipe for the table of real scenes; none when nothing was measured."""
    return [
        {
            "number": RECIPES.index(recipe) + 1,
            "name": RECIPE_NAMES[recipe],
            "grids": _grids(next(row for row in rows if row["recipe"] == recipe)),
            "groups": [
                {
                    "iou": iou,
                    "largest": summary.largest[recipe][group],
                    "timesteps": ", ".join(
                        f"{timestep}: {one.mean:.2f}" for timestep, one in summary.timesteps[recipe][group].items()
                    ),
                }
                for group, iou in groups.items()
            ],
        }
        for recipe, groups in summary.recipes.items()
    ]


def _grids(row: Row) -> str:
    crosses, selves = (", ".join(f"{side} x {side}" for side in row[key]) for key in ("cross_grids", "self_grids"))
    return f"cross-attention {crosses}; self-attention {selves or 'none'}"


def _across(step: int, steps: int) -> float:
    return round(_CHART[0] * step / max(1, steps - 1), 1)


def _points(values: Sequence[float]) -> str:
    """An SVG polyline of values in [0, 1] over the chart's width."""
    places = [(_across(step, len(values)), round(_CHART[1] * (1 - value), 1)) for step, value in enumerate(values)]
    return " ".join(f"{x},{y}" for x, y in places)


def _describe_masks_of(rows: Sequence[Row]) -> dict[str, Any]:
    ordered = sorted(rows, key=lambda row: RECIPES.index(row["recipe"]))
    cells = []
    for row in ordered:
        name = f"No. {RECIPES.index(row['recipe']) + 1}"
        cells += [_cell(name, row["picture"]), _cell(f"Mask, IoU {row['iou']:.2f}", row["mask"])]
    return {"name": rows[0]["subject"], "prompt": rows[0]["prompt"], "cells": cells}


def write_grids(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """`multi_subject.png` and `rounds.png` for people who want pictures at once; nothing without rows."""
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
