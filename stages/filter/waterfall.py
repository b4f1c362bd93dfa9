"""The waterfall plot: how many samples each rule rejects, in the order of the rules, with examples."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from stages.filter.copying import EXAMPLES, Example, Outcome
from stages.filter.rules import REASONS
from stages.storage import StorePath, open_output


def plot_waterfall(outcome: Outcome, file: StorePath) -> None:
    """Write the plot: a row for each reason that rejected samples, between all samples and those kept."""
    taken = [(reason, outcome.reasons[reason]) for reason in REASONS if outcome.reasons[reason]]
    total = outcome.kept + outcome.reasons.total()
    rows = len(taken) + 2
    figure = Figure(figsize=(11, 0.62 * rows + 0.5), layout="constrained")
    grid = figure.add_gridspec(rows, 1 + EXAMPLES, width_ratios=[8, *[1] * EXAMPLES], wspace=0.02, hspace=0.02)
    bars = figure.add_subplot(grid[:, 0])
    _draw_bars(bars, taken, total, outcome.kept)
    for row, (reason, _) in enumerate(taken, start=1):
        examples: Sequence[Example] = outcome.examples.get(reason, [])
        for column, example in enumerate(examples, start=1):
            _show(figure.add_subplot(grid[row, column]), example)
    with open_output(file) as sink:
        figure.savefig(sink, dpi=100)


def _draw_bars(axes: Axes, taken: Sequence[tuple[str, int]], total: int, kept: int) -> None:
    axes.barh(0, total, color="tab:grey")
    left = total
    for row, (_, count) in enumerate(taken, start=1):
        left -= count
        axes.barh(row, left, color="tab:grey", alpha=0.25)
        axes.barh(row, count, left=left, color="tab:orange")
        axes.text(left + count, row, f" {count} ({count / total:.1%})", va="center", fontsize=8)
    axes.barh(len(taken) + 1, kept, color="tab:blue")
    axes.text(kept, len(taken) + 1, f" {kept} ({kept / total:.1%})", va="center", fontsize=8)
    names = ["all samples", *(textwrap.fill(f"{reason}: {REASONS[reason]}", 40) for reason, _ in taken), "kept"]
    axes.set_yticks(np.arange(len(names)), names, fontsize=8)
    axes.set(xlabel="samples", xlim=(0, total * 1.22), ylim=(len(names) - 0.5, -0.5))


def _show(axes: Axes, example: Example) -> None:
    axes.set_axis_off()
    if example.picture is None:
        axes.text(0.5, 0.5, "no\npicture", ha="center", va="center", fontsize=7)
        return
    axes.imshow(Image.open(io.BytesIO(example.picture)))
