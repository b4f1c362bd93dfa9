"""The averages of multi-subject generation: means with their intervals, drawn over whole pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from model.scoring.metrics import Interval, bootstrap_interval
from stages.evaluate.summary import Row, clusters

#: The pictures of a pair, in the order of the report.
TASKS = ("text_only", "many_to_many", "one_to_many", "round_1", "round_2", "round_3")
_SIMILARITIES = ("similarity", "other_similarity", "margin")


@dataclass(frozen=True, kw_only=True)
class MultiSubjectSummary:
    """The similarity of each subject's region to its own subject and to the other subject of the pair.

    Attributes:
        tasks: task -> "similarity", "other_similarity" or "margin" (the first minus the second) -> mean and interval.
        gains: "many_to_many" or "one_to_many" -> the same, minus the values of the picture from text alone.
        pairs: Number of pairs.
    """

    tasks: dict[str, dict[str, Interval]]
    gains: dict[str, dict[str, Interval]]
    pairs: int


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


def _minus(first: Row, second: Row) -> dict[str, Any]:
    return {"pair": first["pair"], **{name: first[name] - second[name] for name in _SIMILARITIES}}


def _intervals(rows: Sequence[Row]) -> dict[str, Interval]:
    pairs = clusters([row["pair"] for row in rows])
    return {name: bootstrap_interval([row[name] for row in rows], pairs) for name in _SIMILARITIES}
