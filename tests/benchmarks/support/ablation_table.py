"""Table and plot of the results of `adapter_ablations`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from model.scoring.metrics import Interval, bootstrap_interval
from stages.evaluate.summary import Row, Summary, clusters, summarize
from tests.benchmarks.support.ablation_variants import LENGTHS, STANDARD, VARIANTS, changed_training

ARM = "adapter_mask"
TEXT_ONLY = "text_only"

#: A finished variant's JSON: {"variant", "examples", "rows": {visual scale: rows of the evaluation with "held_out"}}.
Result = Mapping[str, Any]


def summary_of(plain: Sequence[Row], rows: Sequence[Row], *, held_out_only: bool = False) -> Summary:
    """The stage `evaluate`'s summary of text-only rows and rows with the adapter."""
    return summarize([row for row in (*plain, *rows) if row["held_out"] or not held_out_only])


def gap_closed(plain: Sequence[Row], rows: Sequence[Row], *, held_out_only: bool = False) -> Interval | None:
    """The share of the gap between text only and real views that is closed; None without a held-out category."""
    return summary_of(plain, rows, held_out_only=held_out_only).gap_closed.get(ARM)


def markdown(results: Sequence[Result], plain: Sequence[Row]) -> str:
    """The table of finished variants, with 95 % intervals over subjects."""
    scales = _scales(results)
    head = ["variant", "change", "examples", "similarity, against the training that it changes"]
    for scale in scales:
        names = ("similarity", "gap closed", "held-out categories: gap closed", "background as the prompt says")
        head += [f"{name}, scale {scale}" for name in names]
    by_name = {result["variant"]: result for result in results}
    rows = [
        _table_row(by_name[name], by_name.get(changed_training(name).name), plain, scales)
        for name in VARIANTS
        if name in by_name
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _table_row(result: Result, changed: Result | None, plain: Sequence[Row], scales: Sequence[str]) -> list[str]:
    cells = [result["variant"], VARIANTS[result["variant"]].change, f"{result['examples']:,}"]
    if changed is None or changed["variant"] == result["variant"]:
        cells.append("")
    else:
        difference = similarity_difference(result["rows"][scales[0]], changed["rows"][scales[0]])
        cells.append(f"{difference:+.2f}")
    for scale in scales:
        rows = result["rows"][scale]
        means = summary_of(plain, rows).arms[ARM]
        held_out = gap_closed(plain, rows, held_out_only=True)
        found = (means["similarity"], gap_closed(plain, rows), held_out, means["controllability"])
        cells += ["" if interval is None else f"{interval:.2f}" for interval in found]
    return cells


def similarity_difference(rows: Sequence[Row], other: Sequence[Row]) -> Interval:
    """The paired difference in similarity, first minus second: subjects, prompts and noise are the same."""
    values = [mine["similarity"] - theirs["similarity"] for mine, theirs in zip(rows, other, strict=True)]
    return bootstrap_interval(values, clusters([row["subject"] for row in rows]))


def plot(results: Sequence[Result], plain: Sequence[Row], file: Path) -> None:
    """Draw the gap closed over the number of examples, and bars for the other trainings."""
    figure = Figure(figsize=(14, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 3])
    by_name = {result["variant"]: result for result in results}
    lengths = [by_name[variant.name] for variant in (STANDARD, *LENGTHS) if variant.name in by_name]
    lengths.sort(key=lambda result: int(result["examples"]))
    longer = {variant.name for variant in LENGTHS}
    changes = [by_name[name] for name in VARIANTS if name in by_name and name not in longer]
    scales = _scales(results)
    for number, scale in enumerate(scales):
        means, reach = _means_and_reach(lengths, plain, scale)
        examples = [result["examples"] for result in lengths]
        left.errorbar(examples, means, yerr=reach, marker="o", capsize=4, label=f"visual_scale {scale}")
        means, reach = _means_and_reach(changes, plain, scale)
        height = 0.8 / len(scales)
        places = [bar + (number - (len(scales) - 1) / 2) * height for bar in range(len(changes))]
        right.barh(places, means, height, xerr=reach, capsize=3, label=f"visual_scale {scale}")
    left.set(xscale="log", xlabel="training examples", ylabel="gap closed", title="number of examples")
    right.set(xlabel="gap closed", title="single changes of a training")
    right.set_yticks(range(len(changes)), [VARIANTS[result["variant"]].change for result in changes])
    right.invert_yaxis()
    left.legend()
    figure.savefig(file, dpi=110)


def _scales(results: Sequence[Result]) -> list[str]:
    return sorted({scale for result in results for scale in result["rows"]}, key=float)


def _means_and_reach(
    results: Sequence[Result], plain: Sequence[Row], scale: str
) -> tuple[list[float], NDArray[np.float64]]:
    """Gap closed, and the distances (2, results) to both ends of its interval."""
    found = [gap_closed(plain, result["rows"][scale]) for result in results]
    known = [interval for interval in found if interval is not None]
    reach = [[own.mean - own.low for own in known], [own.high - own.mean for own in known]]
    return [own.mean for own in known], np.array(reach)
