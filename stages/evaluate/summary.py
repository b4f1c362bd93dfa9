"""From scores to statements: means with their intervals, differences between arms, and what they mean in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from model.scoring.metrics import Interval, bootstrap_interval

#: The arms in the order in which they are shown.
ARMS = ("text_only", "adapter", "adapter_mask", "concept")
METRICS = ("similarity", "controllability", "clip_t", "ground_change")
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
        seconds: arm -> seconds a picture took.
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
        """One name a number, for the tracker: "adapter_mask/similarity"."""
        return {f"{arm}/{metric}": self.arms[arm][metric].mean for arm in self.arms for metric in self.arms[arm]}


def summarize(rows: Sequence[Row]) -> Summary:
    """Average the rows of `evaluate/scores` (with `seconds`) by arm, and compare paired arms."""
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
    found = {}
    for metric in METRICS:
        measured = [row for row in rows if row[metric] is not None]
        if measured:
            found[metric] = bootstrap_interval(
                [row[metric] for row in measured], clusters([row["subject"] for row in measured])
            )
    return found


def clusters(subjects: Sequence[str]) -> list[str]:
    """What the bootstrap draws: whole subjects; where there is only one, its pictures are all that can be drawn."""
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
    """The evaluation in a few sentences. A difference counts when its interval leaves zero out."""
    found = []
    for pair, metric, what in (
        (("adapter_mask", "text_only"), "similarity", "Likeness to the subject"),
        (("adapter_mask", "text_only"), "controllability", "Obedience to the prompt"),
        (("adapter_mask", "adapter"), "ground_change", "Change of the ground"),
        (("adapter_mask", "adapter"), "similarity", "Likeness to the subject"),
    ):
        difference = summary.differences.get(" - ".join(pair), {}).get(metric)
        if difference is not None:
            first, second = (summary.arms[arm][metric].mean for arm in pair)
            found.append(_sentence(what, pair, first, second, difference))
    return found


def _sentence(what: str, pair: tuple[str, str], first: float, second: float, difference: Interval) -> str:
    after, before = f"{first:.3f} ({ARM_NAMES[pair[0]].lower()})", f"{second:.3f} ({ARM_NAMES[pair[1]].lower()})"
    bounds = f"{difference.mean:+.3f}, 95 % interval {difference.low:+.3f} to {difference.high:+.3f}"
    if difference.low > 0 or difference.high < 0:
        return f"{what} {'rises' if difference.mean > 0 else 'falls'} from {before} to {after}: {bounds}."
    return f"{what} shows no measurable difference between {before} and {after}: {bounds}."


ARM_NAMES = {
    "text_only": "Text only",
    "adapter": "Adapter",
    "adapter_mask": "Adapter + mask",
    "concept": "Learned concept",
}
