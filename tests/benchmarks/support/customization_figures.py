"""Trade-off curves and a sheet of pictures from the results of `customization_methods`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from tests.benchmarks.support.customization_arms import EXPERIMENTS, Arm
from tests.benchmarks.support.customization_table import CLASS_WORD, Results, finished, mean
from tests.benchmarks.support.labelled_sheet import write_sheet

_TITLES = {
    "mlm": "with the MLM loss (solid) and without",
    "lambda": "lambda of the MLM loss",
    "mask_rate": "share of masked tokens",
    "tailored": "MLM with prompts tailored to the class word",
    "resize": "Custom Diffusion's resized pictures",
    "ico": "ICO (solid) and fixed templates",
    "dci": "DCI at equal passes",
}
#: The setting that gives a line its colour; of other experiments every line has its own.
_COLOURED_BY = {"mlm": "customize.method", "ico": "customize.vectors"}
_COLUMNS = 3  # of panels
_SHEET = ("mlm", "dci")
_SHOWN = 5  # prompts of the sheet
_LABEL = 260  # pixels
_PALETTE = 64


def plot_curves(results: Results, file: Path) -> None:
    """Draw subject similarity over prompt fidelity: a panel for each experiment, a line for each training's steps."""
    experiments = [name for name in EXPERIMENTS if finished(name, results)]
    rows = max(1, math.ceil(len(experiments) / _COLUMNS))
    columns = max(1, min(_COLUMNS, len(experiments)))
    figure = Figure(figsize=(5 * columns, 4.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, experiment in zip(panels, experiments, strict=False):
        _draw_panel(axes, experiment, results)
    for axes in panels[len(experiments) :]:
        axes.set_axis_off()
    figure.savefig(file, dpi=65)


def _draw_panel(axes: Any, experiment: str, results: Results) -> None:
    arms = finished(experiment, results)
    keys = [arm.values.get(_COLOURED_BY.get(experiment, ""), arm.name) for arm in arms]
    for arm, key in zip(arms, keys, strict=True):
        _draw_arm(axes, arm, results, f"C{list(dict.fromkeys(keys)).index(key)}")
    axes.set(xlabel="background as the prompt says", ylabel="subject similarity", title=_TITLES[experiment])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6)


def _draw_arm(axes: Any, arm: Arm, results: Results, colour: str) -> None:
    """A line from the class word alone over the steps; with DCI a point."""
    points = [rows for _, rows in sorted(results[arm.name].items())]
    if CLASS_WORD in results and arm.strength is None:
        points.insert(0, results[CLASS_WORD][max(results[CLASS_WORD])])
    across, up = ([mean(rows, score).mean for rows in points] for score in ("fidelity", "similarity"))
    plain = not arm.values["customize.mlm"] and arm.values.get("customize.prompts") != "ico"
    axes.plot(
        across,
        up,
        color=colour,
        label=arm.label,
        linestyle=":" if plain else "-",
        linewidth=1,
        marker="o" if arm.strength is None else "s",
        markersize=3 if arm.strength is None else 6,
    )


def draw_pictures(folder: Path, results: Results, file: Path) -> None:
    """Draw the first subject's pictures at the last step: a row for each arm, a column for each prompt."""
    if CLASS_WORD not in results:
        return
    subject = next(iter(results[CLASS_WORD].values()))[0]["subject"]
    arms = {arm.name: arm.label for name in _SHEET for arm in finished(name, results)}
    rows = {
        label: Image.open(folder / name / f"{subject}.png")
        for name, label in {CLASS_WORD: "class word alone", **arms}.items()
    }
    side = next(iter(rows.values())).height
    width = min(_SHOWN * side, next(iter(rows.values())).width)
    write_sheet([(label, row.crop((0, 0, width, side))) for label, row in rows.items()], file, _LABEL, _PALETTE)
