"""Several subjects and masks in numbers: means with their intervals, over whole pairs or subjects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from model.scoring.metrics import Interval, bootstrap_interval
from stages.evaluate.mask_quality import RECIPES
from stages.evaluate.summary import Row, clusters

#: What is painted of a pair, in the order in which it is shown.
TASKS = ("text_only", "many_to_many", "one_to_many", "round_1", "round_2", "round_3")


@dataclass(frozen=True, kw_only=True)
class MultiSubjectSummary:
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


@dataclass(frozen=True, kw_only=True)
class SceneMaskSummary:
    """How well the masks of each recipe fit in real scenes, by the number of objects in a scene.

    Attributes:
        recipes: recipe -> "one_object" or "two_objects" -> the IoU over all timesteps, mean and interval.
        largest: likewise, what masks of so many positions can reach.
        timesteps: recipe -> "one_object" or "two_objects" -> timestep -> the IoU.
    """

    recipes: dict[str, dict[str, Interval]]
    largest: dict[str, dict[str, float]]
    timesteps: dict[str, dict[str, dict[int, Interval]]]


def summarize_multi_subject(rows: Sequence[Row]) -> MultiSubjectSummary:
    """Average the rows of `evaluate/multi_subject`."""
    by_task = {task: [_with_margin(row) for row in rows if row["task"] == task] for task in TASKS}
    plain = {(row["pair"], row["subject"]): row for row in by_task["text_only"]}
    return MultiSubjectSummary(
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


def summarize_masks(rows: Sequence[Row], mask_steps: int) -> MaskSummary:
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


GROUPS = {"one_object": 1, "two_objects": 2}


def summarize_scene_masks(rows: Sequence[Row]) -> SceneMaskSummary:
    """Average the rows of `evaluate/scene_masks`; whole scenes are drawn for the intervals."""
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


@dataclass(frozen=True, kw_only=True)
class SecondaryResults:
    """What is measured beside the arms: rows of `multi_subject`, `masks` and `scene_masks`, and their averages."""

    multi_subject_rows: Sequence[Row]
    multi_subject: MultiSubjectSummary
    mask_rows: Sequence[Row]
    masks: MaskSummary
    scene_rows: Sequence[Row]
    scenes: SceneMaskSummary

    @classmethod
    def of(
        cls, multi_subject: Sequence[Row], masks: Sequence[Row], scenes: Sequence[Row], mask_steps: int
    ) -> SecondaryResults:
        """Average the rows."""
        return cls(
            multi_subject_rows=multi_subject,
            multi_subject=summarize_multi_subject(multi_subject),
            mask_rows=masks,
            masks=summarize_masks(masks, mask_steps),
            scene_rows=scenes,
            scenes=summarize_scene_masks(scenes),
        )

    def as_json(self) -> dict[str, Any]:
        """Plain numbers and names, for `metrics.json`."""
        return {
            "multi_subject": asdict(self.multi_subject),
            "masks": asdict(self.masks),
            "scene_masks": asdict(self.scenes),
        }

    def flat(self) -> dict[str, float]:
        """One name a number, for the tracker: "multi_subject_many_to_many/similarity", "mask_cross_self/iou"."""
        return {
            **{
                f"multi_subject_{task}/{name}": v.mean
                for task, of in self.multi_subject.tasks.items()
                for name, v in of.items()
            },
            **{f"mask_{recipe}/iou": of["iou"].mean for recipe, of in self.masks.recipes.items()},
            **{f"mask_{recipe}/{name}": v.mean for recipe, of in self.scenes.recipes.items() for name, v in of.items()},
        }
