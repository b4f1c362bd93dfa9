"""Tables and a plot of the runs of `curriculum_recipes`, with the paper's Table X for comparison.

Legend: S training seeds, J subjects, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from model.scoring.metrics import Interval

#: Metric of the stage `evaluate` -> the name in the tables, and the kind of the paper's metric that it corresponds to.
METRICS = {
    "controllability": ("prompt fidelity", "text"),
    "clip_t": ("CLIP-T", "text"),
    "similarity": ("subject similarity", "image"),
}
ARMS = {"adapter_mask": "adapter with mask", "adapter": "adapter alone"}
TEXT_ONLY = "text_only"


@dataclass(frozen=True, kw_only=True)
class TableXRow:
    """A recipe of Table X or the control: its configuration, and the paper's results.

    Attributes:
        number: Number in the paper.
        name: Description.
        settings: Settings of the stage `curriculum`.
        text: The paper's CLIP-B-T, if any.
        image: The paper's CLIP-B-I, if any.
        captions_name_backgrounds: Whether the captions of text-image samples keep their backgrounds.
    """

    number: int
    name: str
    settings: Mapping[str, Any]
    text: float | None = None
    image: float | None = None
    captions_name_backgrounds: bool = True


_NO_CROPS = {"max_crop_ratio": 1.0}
_CROPS = {"max_crop_ratio": 3.1622776601683795}  # the paper's sqrt(10)

TABLE_X = (
    TableXRow(
        number=1,
        name="text-image pairs only",
        settings={"multiview_probability": 0.0, **_NO_CROPS},
        text=30.02,
        image=86.24,
    ),
    TableXRow(
        number=2,
        name="multiview pairs only",
        settings={"multiview_probability": 1.0, **_NO_CROPS},
        text=32.18,
        image=83.92,
    ),
    TableXRow(
        number=3, name="half and half", settings={"multiview_probability": 0.5, **_NO_CROPS}, text=31.89, image=85.33
    ),
    TableXRow(number=4, name="curriculum data", settings=_NO_CROPS, text=32.10, image=86.11),
    TableXRow(number=5, name="No. 4 and random crops", settings={"crops": "random", **_CROPS}, text=33.43, image=86.82),
    TableXRow(number=6, name="No. 4 and curriculum crops", settings=_CROPS, text=33.43, image=87.32),
)

#: Text-image samples with captions without backgrounds, like those of view pairs ("a photo of a mug").
CONTROL = TableXRow(
    number=7,
    name="No. 1, captions without backgrounds",
    settings={"multiview_probability": 0.0, **_NO_CROPS},
    captions_name_backgrounds=False,
)
RECIPES = (*TABLE_X, CONTROL)

#: Differences (first minus second): of the full recipe, those that the paper discusses, and of the control.
COMPARISONS = ((6, 1), (6, 2), (6, 3), (6, 4), (6, 5), (4, 1), (4, 2), (4, 3), (7, 1), (7, 2))

#: A run's JSON file: {"recipe", "seed", "pictures": [{"arm", "subject", one number for each metric}, ..], ..}.
Run = Mapping[str, Any]


@dataclass(frozen=True)
class Scores:
    """One metric of one recipe: a number for each seed and subject, the mean over the subject's pictures."""

    values: NDArray[np.float64]  # (S, J)
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, runs: Sequence[Run], arm: str, metric: str) -> Scores:
        """Collect the scores of a recipe's runs, which all have the same subjects."""
        rows = []
        for run in sorted(runs, key=lambda run: int(run["seed"])):
            by_subject: dict[str, list[float]] = {}
            for picture in run["pictures"]:
                if picture["arm"] == arm:
                    by_subject.setdefault(picture["subject"], []).append(picture[metric])
            rows.append([float(np.mean(by_subject[name])) for name in sorted(by_subject)])
        return cls(np.array(rows), tuple(sorted(int(run["seed"]) for run in runs)))

    def minus(self, other: Scores) -> Scores:
        """Differences for the shared seeds, which have the same initial weights, noise and random draws."""
        shared = tuple(seed for seed in self.seeds if seed in other.seeds)
        mine, theirs = (scores.values[[scores.seeds.index(seed) for seed in shared]] for scores in (self, other))
        return Scores(mine - theirs, shared)


def interval(scores: Scores, resamples: int = 5000) -> Interval:
    """The mean with its 95 % bootstrap interval; it resamples both seeds and subjects.

    The pigeonhole bootstrap of crossed random effects (Owen, "The pigeonhole bootstrap", 2007), with percentile bounds.
    With three seeds, the part of the width that comes from training is only a rough estimate.
    """
    rng = np.random.default_rng(0)
    seeds, subjects = scores.values.shape
    seed_shares = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds  # (R, S)
    subject_shares = rng.multinomial(subjects, np.full(subjects, 1 / subjects), resamples) / subjects  # (R, J)
    means = np.einsum("rs,sj,rj->r", seed_shares, scores.values, subject_shares)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(mean=float(scores.values.mean()), low=float(low), high=float(high))


def verdict(ours: Interval, papers: float | None) -> str:
    """Compare the sign of a difference with the paper's; "open" if its interval contains zero."""
    if papers is None:
        return ""
    if ours.low <= 0 <= ours.high:
        return "open"
    if round(papers, 2) == 0:
        return "none in the paper"
    return "same" if (ours.mean > 0) == (papers > 0) else "OPPOSITE"


def markdown(runs: Sequence[Run]) -> str:
    """The table of means, and for each arm the table of differences, with the paper's."""
    parts = [_means_table(runs), _text_only_line(runs)]
    for arm, name in ARMS.items():
        parts += [f"Differences, {name}:", _differences_table(runs, arm)]
    return "\n\n".join(part for part in parts if part)


def _of(runs: Sequence[Run], number: int) -> list[Run]:
    return [run for run in runs if run["recipe"] == number]


def _means_table(runs: Sequence[Run]) -> str:
    head = ["No.", "recipe", "seeds", "paper: CLIP-B-T", "paper: CLIP-B-I"]
    head += [f"{shown}, {arm}" for arm in ARMS.values() for shown, _ in METRICS.values()]
    rows = []
    for row in RECIPES:
        own = _of(runs, row.number)
        if own:
            found = [interval(Scores.of(own, arm, metric)) for arm in ARMS for metric in METRICS]
            papers = ["" if value is None else f"{value:.2f}" for value in (row.text, row.image)]
            rows.append([str(row.number), row.name, str(len(own)), *papers, *(f"{one:.3f}" for one in found)])
    return _table(head, rows)


def _text_only_line(runs: Sequence[Run]) -> str:
    own = [run for run in _of(runs, 1) if any(picture["arm"] == TEXT_ONLY for picture in run["pictures"])][:1]
    if not own:
        return ""
    found = [f"{shown} {interval(Scores.of(own, TEXT_ONLY, metric)):.3f}" for metric, (shown, _) in METRICS.items()]
    return f"The same cases from text only: {', '.join(found)}."


def _differences_table(runs: Sequence[Run], arm: str) -> str:
    head = ["difference", "paper: CLIP-B-T", "paper: CLIP-B-I"]
    for shown, _ in METRICS.values():
        head += [shown, "direction"]
    rows = []
    for first, second in COMPARISONS:
        mine, other = _of(runs, first), _of(runs, second)
        if not {run["seed"] for run in mine} & {run["seed"] for run in other}:
            continue
        papers = _papers_differences(first, second)
        cells = [f"No. {first} - No. {second}"]
        cells += ["" if papers[name] is None else f"{papers[name]:+.2f}" for name in ("text", "image")]
        for metric, (_, kind) in METRICS.items():
            found = interval(Scores.of(mine, arm, metric).minus(Scores.of(other, arm, metric)))
            cells += [f"{found:+.3f}", verdict(found, papers[kind])]
        rows.append(cells)
    return _table(head, rows)


def _papers_differences(first: int, second: int) -> dict[str, float | None]:
    """The paper's differences in CLIP-B-T ("text") and CLIP-B-I ("image") between two recipes."""
    one, other = ({"text": row.text, "image": row.image} for row in (RECIPES[first - 1], RECIPES[second - 1]))
    differences: dict[str, float | None] = {}
    for name, value in one.items():
        theirs = other[name]
        differences[name] = None if value is None or theirs is None else value - theirs
    return differences


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plot(runs: Sequence[Run], file: Path) -> None:
    """Plot the paper's two metrics, and ours with intervals and a dot for each seed."""
    figure = Figure(figsize=(15, 7), layout="constrained")
    panels = figure.subplots(2, 1 + len(ARMS), sharex=True)
    for row in panels[:, 1:]:
        for other in row[1:]:
            other.sharey(row[0])
    numbers = [row.number for row in RECIPES if _of(runs, row.number)]
    for axes, name in zip(panels[:, 0], ("text", "image"), strict=True):
        axes.plot(numbers, [getattr(RECIPES[number - 1], name) for number in numbers], "ks")
        axes.set(title=f"the paper's CLIP-B-{'T' if name == 'text' else 'I'}")
    for column, (arm, arm_name) in enumerate(ARMS.items(), start=1):
        for axes, metric in zip(panels[:, column], ("controllability", "similarity"), strict=True):
            _plot_scores(axes, [Scores.of(_of(runs, number), arm, metric) for number in numbers], numbers)
            axes.set(title=f"{METRICS[metric][0]}, {arm_name}")
    names = {row.number: f"{row.number}. {row.name}" for row in RECIPES}
    for axes in panels.flat:
        axes.set_xticks(numbers, [names[number] for number in numbers], rotation=30, ha="right")
        axes.grid(alpha=0.3)
    figure.suptitle("Training recipes of Table X: means with 95 % intervals over seeds and subjects; dots are seeds")
    figure.savefig(file, dpi=110)


def _plot_scores(axes: Any, scores: Sequence[Scores], numbers: Sequence[int]) -> None:
    found = [interval(score) for score in scores]
    mean = np.array([own.mean for own in found])
    reach = np.abs(np.array([[own.low for own in found], [own.high for own in found]]) - mean)
    axes.errorbar(numbers, mean, yerr=reach, fmt="o", color="tab:blue", capsize=4)
    for number, score in zip(numbers, scores, strict=True):
        axes.plot(np.full(len(score.values), number + 0.15), score.values.mean(1), ".", color="tab:orange")
