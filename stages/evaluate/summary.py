"""The averages of the scores: means with intervals for each arm, differences between arms, and findings in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from model.microworld.appearance import PLAIN
from model.scoring.metrics import Interval, bootstrap_interval, bootstrap_ratio
from stages.evaluate.appearance import ANSWERS
from stages.evaluate.formatting import difference, is_significant, mean, percent

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
    "copying": "Copying",
    "background_change": "Background change",
}
METRICS = tuple(METRIC_NAMES)
#: Pairs of arms that share subjects, prompts and seeds: the first minus the second.
DIFFERENCES = (("adapter", "text_only"), ("adapter_mask", "text_only"), ("adapter_mask", "adapter"))

#: What the subject similarity of an arm can be compared with: a ceiling and a floor, by their columns.
REFERENCE_NAMES = {"real_views": "Real views of the subject", "another_subject": "Another subject, same word"}

Row = Mapping[str, Any]
ByArm = dict[str, dict[str, Interval]]


@dataclass(frozen=True, kw_only=True)
class AppearanceSummary:
    """How often the judge's answers on a picture are those on its reference.

    Attributes:
        arms: arm -> one of `ANSWERS` -> share of the pictures and 95 % interval.
        real_views: The same of the subjects' other real views.
        subjects: Number of subjects of the arms but the learned concept.
    """

    arms: ByArm
    real_views: dict[str, Interval]
    subjects: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The numbers of an evaluation.

    Attributes:
        arms: arm -> metric -> mean and 95 % interval.
        differences: "first - second" -> metric -> mean and 95 % interval of the paired difference.
        references: Similarities of real pictures, by the names of `REFERENCE_NAMES`.
        gap_closed: arm -> (arm - text only) / (real views - text only), of the similarity.
        appearance: Pattern and colours of subjects with a "patterned" and with a "plain" reference, as the judge sees
            it; without a judge empty.
        pictures: arm -> number of pictures.
        subjects: Number of held-out subjects.
        seconds: arm -> mean seconds for a picture.
    """

    arms: ByArm
    differences: ByArm
    references: dict[str, Interval]
    gap_closed: dict[str, Interval]
    appearance: dict[str, AppearanceSummary]
    pictures: dict[str, int]
    subjects: int
    seconds: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Plain numbers and names."""
        return asdict(self)

    def flat(self) -> dict[str, float]:
        """The means by the tracker's names, such as "adapter_mask/similarity"."""
        means = {f"{arm}/{metric}": self.arms[arm][metric].mean for arm in self.arms for metric in self.arms[arm]}
        means |= {f"{name}/similarity": interval.mean for name, interval in self.references.items()}
        means |= {f"{arm}/gap_closed": interval.mean for arm, interval in self.gap_closed.items()}
        if patterned := self.appearance.get("patterned"):  # a plain subject painted plain says little
            shares = {**patterned.arms, "real_views": patterned.real_views}
            means |= {f"{arm}/{answer}": own[answer].mean for arm, own in shares.items() for answer in own}
        return means


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
        references=_of_subjects(_without_concept(present), REFERENCE_NAMES),
        gap_closed={
            arm: interval
            for arm in ("adapter", "adapter_mask")
            if (interval := _gap_closed(by_arm[arm], by_arm["text_only"])) is not None
        },
        appearance=_appearance(present),
        pictures={arm: len(found) for arm, found in present.items()},
        subjects=len({row["subject"] for row in _without_concept(present)}),
        seconds={arm: sum(row["seconds"] for row in found) / len(found) for arm, found in present.items()},
    )


def _without_concept(by_arm: Mapping[str, Sequence[Row]]) -> list[Row]:
    """The rows of the arms that share subjects."""
    return [row for arm, found in by_arm.items() if arm != "concept" for row in found]


def _intervals(rows: Sequence[Row], metrics: Sequence[str] = METRICS) -> dict[str, Interval]:
    intervals = {}
    for metric in metrics:
        measured = [row for row in rows if row[metric] is not None]
        if measured:
            intervals[metric] = bootstrap_interval(
                [row[metric] for row in measured], clusters([row["subject"] for row in measured])
            )
    return intervals


def _of_subjects(rows: Sequence[Row], columns: Iterable[str]) -> dict[str, Interval]:
    """Means of columns that have one value for each subject: subjects with more prompts do not count more."""
    found = {}
    for name in columns:
        values = {row["subject"]: row[name] for row in rows if row[name] is not None}
        if values:
            found[name] = bootstrap_interval(list(values.values()), list(values))
    return found


def _appearance(by_arm: Mapping[str, Sequence[Row]]) -> dict[str, AppearanceSummary]:
    """Patterned and plain references apart: most pictures of a plain subject are plain without any reference."""
    groups = {
        name: {arm: [row for row in rows if _reference_kind(row) == name] for arm, rows in by_arm.items()}
        for name in ("patterned", "plain")
    }
    return {name: _appearance_of(rows) for name, rows in groups.items() if any(rows.values())}


def _reference_kind(row: Row) -> str | None:
    if row["reference_pattern"] is None:
        return None
    return "plain" if row["reference_pattern"] == PLAIN else "patterned"


def _appearance_of(by_arm: Mapping[str, Sequence[Row]]) -> AppearanceSummary:
    rows = _without_concept(by_arm)
    views = _of_subjects(rows, [f"views_{answer}" for answer in ANSWERS])
    return AppearanceSummary(
        arms={arm: _intervals(found, ANSWERS) for arm, found in by_arm.items() if found},
        real_views={name.removeprefix("views_"): interval for name, interval in views.items()},
        subjects=len({row["subject"] for row in rows}),
    )


def _gap_closed(arm: Sequence[Row], text_only: Sequence[Row]) -> Interval | None:
    """The share of the gap between text only and real views that an arm closes; None without paired rows."""
    plain = {_case(row): row["similarity"] for row in text_only}
    rows = [row for row in arm if _case(row) in plain and row["real_views"] is not None]
    if not rows:
        return None
    return bootstrap_ratio(
        [row["similarity"] - plain[_case(row)] for row in rows],
        [row["real_views"] - plain[_case(row)] for row in rows],
        clusters([row["subject"] for row in rows]),
    )


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
    """The evaluation in at most six sentences."""
    sentences = [
        _finding(summary, pair, metric)
        for pair, metric in (
            (("adapter_mask", "text_only"), "similarity"),
            (("adapter_mask", "text_only"), "controllability"),
            (("adapter_mask", "adapter"), "background_change"),
            (("adapter_mask", "adapter"), "similarity"),
        )
        if metric in summary.differences.get(" - ".join(pair), {})
    ]
    closed = summary.gap_closed.get("adapter_mask")
    if closed is not None:
        low, share, high = (percent(100 * value) for value in (closed.low, closed.mean, closed.high))
        interval = f"95 % interval {low} to {high}"
        sentences.insert(1, f"That closes {share} of the gap to real views of the subject, {interval}.")
    patterned = summary.appearance.get("patterned")
    if patterned is not None and "adapter_mask" in patterned.arms:
        sentences.append(_appearance_finding(patterned))
    return sentences


def _appearance_finding(patterned: AppearanceSummary) -> str:
    """How many pictures of patterned subjects have the reference's pattern and colours."""
    arms = {**patterned.arms, "real_views": patterned.real_views}
    shares = {
        arm: " and ".join(percent(100 * own[answer].mean) for answer in ("pattern", "colours"))
        for arm, own in arms.items()
    }
    others = {"text_only": "text only", "real_views": "other real views"}
    compared = ", ".join(f"{name} {shares[arm]}" for arm, name in others.items() if arm in shares)
    return (
        "Of patterned subjects, the pictures by adapter + mask have the reference's pattern and its two colours in "
        f"{shares['adapter_mask']} ({compared})."
    )


def _finding(summary: Summary, pair: tuple[str, str], metric: str) -> str:
    change, name = summary.differences[" - ".join(pair)][metric], METRIC_NAMES[metric]
    after, before = (f"{mean(summary.arms[arm][metric].mean)} ({ARM_NAMES[arm].lower()})" for arm in pair)
    if is_significant(change):
        return f"{name} {'rises' if change.mean > 0 else 'falls'} from {before} to {after}: {difference(change)}."
    return f"{name} shows no measurable difference between {before} and {after}: {difference(change)}."
