"""Trade-off curves and a sheet of pictures from the results of `customization_methods`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from tests.benchmarks.support.customization_arms import EXPERIMENTS, Arm
from tests.benchmarks.support.customization_table import CLASS_WORD, Results, finished, mean

_TITLES = {
    "mlm": "with the MLM loss (solid) and without",
    "lambda": "lambda of the MLM loss",
    "mask_rate": "share of masked tokens",
    "ico": "ICO (solid) and fixed templates",
    "dci": "DCI at equal passes",
}
_SHOWN = 6  # prompts of the sheet
_LABEL = 190
_COLOURS = 96  # of the sheet's palette


def plot_curves(results: Results, file: Path) -> None:
    """Draw subject similarity over prompt fidelity: a panel for each experiment, a line for each training's steps."""
    experiments = [name for name in EXPERIMENTS if finished(name, results)]
    figure = Figure(figsize=(4.6 * max(1, len(experiments)), 4.4), layout="constrained")
    panels = figure.subplots(1, max(1, len(experiments)), squeeze=False)[0]
    for axes, experiment in zip(panels, experiments, strict=False):
        for number, arm in enumerate(finished(experiment, results)):
            _draw_arm(axes, arm, results, number)
        axes.set(xlabel="background as the prompt says", ylabel="subject similarity", title=_TITLES[experiment])
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6)
    figure.savefig(file, dpi=80)


def _draw_arm(axes: Any, arm: Arm, results: Results, number: int) -> None:
    """A line over the steps, from the class word alone; of one step only a point with its intervals."""
    own, style = results[arm.name], _style(arm, number)
    if len(own) == 1 and arm.strength is not None:
        (rows,) = own.values()
        across, up = mean(rows, "fidelity"), mean(rows, "similarity")
        reach = [[[one.mean - one.low], [one.high - one.mean]] for one in (across, up)]
        axes.errorbar([across.mean], [up.mean], xerr=reach[0], yerr=reach[1], capsize=2, label=arm.label, **style)
        return
    points = [rows for _, rows in sorted(own.items())]
    if CLASS_WORD in results:
        points.insert(0, results[CLASS_WORD][0])
    across_all, up_all = ([mean(rows, score).mean for rows in points] for score in ("fidelity", "similarity"))
    axes.plot(across_all, up_all, label=arm.label, linewidth=1, **style)


def _style(arm: Arm, number: int) -> dict[str, Any]:
    values = arm.values
    method = arm.name.partition("-")[0]
    if arm.strength is not None:
        return {"marker": "s", "markersize": 5, "linestyle": "none", "color": f"C{number}"}
    if values["customize.method"] == "custom_diffusion" and "customize.vectors" in values:
        solid = values["customize.prompts"] == "ico"
        return {"marker": "o", "markersize": 3, "linestyle": "-" if solid else ":", "color": f"C{number % 3}"}
    methods = [one.name for one in EXPERIMENTS["mlm"] if not one.values["customize.mlm"]]
    one_method = arm in EXPERIMENTS["lambda"] and not values["customize.mlm"]
    colour = f"C{methods.index(method)}" if not one_method else "black"
    return {"marker": "o", "markersize": 3, "linestyle": "-" if values["customize.mlm"] else ":", "color": colour}


def draw_pictures(folder: Path, results: Results, file: Path) -> None:
    """Draw the first subject's pictures at the last step, a row for each arm, a column for each prompt."""
    names = {arm.name: arm.label for name in ("mlm", "ico", "dci") for arm in finished(name, results)}
    subjects = [row["subject"] for row in results.get(CLASS_WORD, {}).get(0, [])]
    rows = (
        [
            (label, folder / name / f"{subjects[0]}.png")
            for name, label in {CLASS_WORD: "class word alone", **names}.items()
        ]
        if subjects
        else []
    )
    if not rows:
        return
    pictures = [(label, Image.open(picture)) for label, picture in rows]
    side = pictures[0][1].height
    width = min(_SHOWN * side, pictures[0][1].width)
    sheet = Image.new("RGB", (_LABEL + width, side * len(pictures)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (label, picture) in enumerate(pictures):
        draw.text((4, number * side + side // 2 - 6), label, "black", ImageFont.load_default(11))
        sheet.paste(picture.crop((0, 0, width, side)), (_LABEL, number * side))
    sheet.quantize(_COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
