"""The pictures of a customization: samples over steps, the losses, and the trade-off of both scores."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from stages.customize.learning import LearnedConcept
from stages.customize.scores import Scored

_SHOWN = 4  # pictures of a row
_SIDE, _GAP, _LABEL = 128, 4, 120
#: Of the axes of scores: differences that are much smaller say nothing.
_LEAST_RANGE = 0.1


def draw_samples(concepts: Sequence[LearnedConcept], file: Path) -> None:
    """Write one picture: for each subject its pictures, then the class word's, then the concept's at each step.

    Pictures of one column are from the same prompt and noise, except the subject's own.
    """
    rows = [row for concept in concepts for row in _rows_of(concept)]
    sheet = Image.new("RGB", (_LABEL + _SHOWN * (_SIDE + _GAP), len(rows) * (_SIDE + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (label, pictures) in enumerate(rows):
        top = y * (_SIDE + _GAP)
        draw.multiline_text((4, top + 4), label, "black", ImageFont.load_default(13))
        for x, picture in enumerate(pictures[:_SHOWN]):
            sheet.paste(_resized(picture), (_LABEL + x * (_SIDE + _GAP), top))
    sheet.save(file, optimize=True)


def _rows_of(concept: LearnedConcept) -> list[tuple[str, list[Image.Image]]]:
    rows: list[tuple[str, list[Image.Image]]] = []
    for subject, scored in zip(concept.subjects, concept.scored, strict=True):
        own: list[Image.Image] = [Image.open(io.BytesIO(picture)) for picture in subject.pictures]
        rows.append((f"{subject.name[:16]}\n{subject.word[:16]}", own))
        for step, samples in sorted(scored.samples.items()):
            rows.append((f"step {step}" if step else "class word alone", samples))
    return rows


def _resized(picture: Image.Image) -> Image.Image:
    filtering = Image.Resampling.NEAREST if picture.width < _SIDE else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize((_SIDE, _SIDE), filtering)


def plot_losses(concepts: Sequence[LearnedConcept], file: Path) -> None:
    """Plot the losses of all concepts over their steps, one panel for each loss."""
    keys = [key for key in ("diffusion", "mlm", "class") if any(key in concept.curves for concept in concepts)]
    figure = Figure(figsize=(5 * max(1, len(keys)), 3.2), layout="constrained")
    for axes, key in zip(figure.subplots(1, max(1, len(keys)), squeeze=False)[0], keys, strict=False):
        for concept in concepts:
            if key in concept.curves:
                steps, values = zip(*concept.curves[key], strict=True)
                axes.plot(steps, values, linewidth=1, label=", ".join(subject.name for subject in concept.subjects))
        axes.set(xlabel="step", title=key)
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend(fontsize="x-small")
    figure.savefig(file, dpi=100)


def plot_trade_off(scores: Mapping[str, Scored], file: Path) -> None:
    """Plot subject similarity against prompt fidelity over the steps, a line for each subject from its class word."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, scored in scores.items():
        points = [scored.word.means(), *(arm.means() for _, arm in sorted(scored.checkpoints.items()))]
        similarity, fidelity = zip(*points, strict=True)
        axes.plot(fidelity, similarity, marker="o", markersize=4, linewidth=1, label=name)
        for step, (x, y) in zip([0, *sorted(scored.checkpoints)], zip(fidelity, similarity, strict=True), strict=True):
            axes.annotate(str(step), (x, y), fontsize=7, xytext=(3, 3), textcoords="offset points")
    _widen(axes)
    axes.set(xlabel="prompt fidelity", ylabel="subject similarity", title="Over the steps; 0 is the class word alone")
    axes.grid(alpha=0.3)
    if len(axes.lines) > 1:
        axes.legend(fontsize="x-small")
    figure.savefig(file, dpi=100)


def _widen(axes: Any) -> None:
    """Show at least `_LEAST_RANGE` of both scores."""
    for limits, set_limits in ((axes.get_xlim(), axes.set_xlim), (axes.get_ylim(), axes.set_ylim)):
        middle, half = sum(limits) / 2, max(limits[1] - limits[0], _LEAST_RANGE) / 2
        set_limits(middle - half, middle + half)
