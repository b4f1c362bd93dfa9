"""The averages of the scores: means with intervals for each arm, differences between arms, and findings in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from model.scoring.metrics import Interval, bootstrap_interval
from stages.evaluate.formatting import difference, is_significant, mean

ARM_NAMES = {
    "text_only": "Text only",
    "adapter": "Adapter",
    "adapter_mask": "Adapter + mask",
    "concept": "Learned concept",
}
ARMS = tuple(ARM_NAMES)  # in the order of the report
METRIC_NAMES = {
    "similarity": "Subject similarity",
    "controllability": "Prompt fidelity",
    "clip_t": "CLIP-T",
    "background_change": "Background change",
}
METRICS = tuple(METRIC_NAMES)
#: Pairs of arms that share subjects, prompts and seeds: the first minus the second.
DIFFERENCES = (("adapter", "text_only"), ("adapter_mask", "text_only"), ("adapter_mask", "adapter"))

Row = Mapping[str, Any]
ByArm = dict[str, dict[str, Interval]]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The numbers of an evaluation.

    Attributes:
        arms: arm -> metric -> mean and 95 % interval.
        differences: "first - second" -> metric -> mean and 95 % interval of the paired difference.
        pictures: arm -> number of pictures.
        subjects: Number of held-out subjects.
        seconds: arm -> mean seconds for a picture.
    """

    arms: ByArm
    differences: ByArm
    pictures: dict[str, int]
    subjects: int
    seconds: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Plain numbers and names."""
        return asdict(self)

    def flat(self) -> dict[str, float]:
        """The means by the tracker's names, such as "adapter_mask/similarity"."""
        return {f"{arm}/{metric}": self.arms[arm][metric].mean for arm in self.arms for metric in self.arms[arm]}


def summarize(rows: Sequence[Row]) -> Summary:
    """Average the rows of `evaluate/scores` (with `seconds`) for each arm, and compare paired arms."""
    by_arm = {arm: [row for row in rows if row["arm"] == arm] for arm in ARMS}
    present = {arm: found for arm, found in by_arm.items() if found}
    return Summary(
        arms={arm: _intervals(found) for arm, found in present.items()},
        differences={
            f"{first} - {second}": _differences(by_arm[first], by_arm[second])
            for first, second in DIFFERENCES
            if first in present and second in present
        },
        pictures={arm: len(found) for arm, found in present.items()},
        subjects=len({row["subject"] for arm, found in present.items() if arm != "concept" for row in found}),
        seconds={arm: sum(row["seconds"] for row in found) / len(found) for arm, found in present.items()},
    )


def _intervals(rows: Sequence[Row]) -> dict[str, Interval]:
    intervals = {}
    for metric in METRICS:
        measured = [row for row in rows if row[metric] is not None]
        if measured:
            intervals[metric] = bootstrap_interval(
                [row[metric] for row in measured], clusters([row["subject"] for row in measured])
            )
    return intervals


def clusters(subjects: Sequence[str]) -> list[str]:
    """The units that the bootstrap draws: whole subjects, or pictures if there is only one subject."""
    return list(subjects) if len(set(subjects)) > 1 else [str(number) for number in range(len(subjects))]


def _differences(first: Sequence[Row], second: Sequence[Row]) -> dict[str, Interval]:
    other = {_case(row): row for row in second}
    paired = [
        {"subject": row["subject"], **{metric: _minus(row[metric], other[_case(row)][metric]) for metric in METRICS}}
        for row in first
        if _case(row) in other
    ]
    return _intervals(paired)


def _case(row: Row) -> tuple[str, str, int]:
    return row["subject"], row["prompt"], row["seed"]


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def findings(summary: Summary) -> list[str]:
    """The evaluation in at most four sentences; each compares two arms."""
    return [
        _finding(summary, pair, metric)
        for pair, metric in (
            (("adapter_mask", "text_only"), "similarity"),
            (("adapter_mask", "text_only"), "controllability"),
            (("adapter_mask", "adapter"), "background_change"),
            (("adapter_mask", "adapter"), "similarity"),
        )
        if metric in summary.differences.get(" - ".join(pair), {})
    ]


def _finding(summary: Summary, pair: tuple[str, str], metric: str) -> str:
    change, name = summary.differences[" - ".join(pair)][metric], METRIC_NAMES[metric]
    after, before = (f"{mean(summary.arms[arm][metric].mean)} ({ARM_NAMES[arm].lower()})" for arm in pair)
    if is_significant(change):
        return f"{name} {'rises' if change.mean > 0 else 'falls'} from {before} to {after}: {difference(change)}."
    return f"{name} shows no measurable difference between {before} and {after}: {difference(change)}."
