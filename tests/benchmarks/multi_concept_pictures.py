"""Concepts from pictures with two objects: which of them V* means, with and without MLM (Contextualizer, Sec. 5.3).

    python -m tests.benchmarks.multi_concept_pictures --concepts runs/concepts
    python -m tests.benchmarks.multi_concept_pictures --concepts runs/concepts --sheet docs/multi_concept_pictures.png

Hardware and time: a core; seconds. `--concepts` is the output of `tests.benchmarks.customization_methods`, whose
pictures are read.

All pictures of an album show the subject beside one neighbour. The paper's prompts for the MLM loss are tailored to the
concept ("a man petting a [v] dog"), so that V* learns it alone. The judge says with which probability a picture shows
an object of the subject's category; of the neighbour's, which is the likeliest other one in the album; and of any
other. Intervals are over subjects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from model.micro_sd.weights import WEIGHTS_FOLDER
from model.microworld.shapes import CATEGORIES
from model.pictures.sheets import row
from model.pictures.tensors import to_tensor
from model.scoring.metrics import JudgeScorer, bootstrap_interval
from tests.benchmarks.support.command_line import benchmark_parser
from tests.benchmarks.support.customization_arms import EXPERIMENTS
from tests.benchmarks.support.customization_table import CLASS_WORD
from tests.benchmarks.support.labelled_sheet import write_sheet

SCORES = {
    "subject": "shows the subject's category",
    "neighbour": "shows the neighbour's",
    "another": "shows another category",
}
ARMS = {CLASS_WORD: "class word alone", **{arm.name: arm.label for arm in EXPERIMENTS["tailored"]}}
_REFERENCE = "textual_inversion"
_SHOWN = 3  # subjects of the sheet
_PICTURES = 6  # of a row
_LABEL = 280  # pixels


def neighbour_of(judge: JudgeScorer, album: Sequence[Image.Image], category: str) -> str:
    """The likeliest category in an album besides the subject's."""
    found = _present(judge, album).mean(0)
    found[CATEGORIES.index(category)] = 0
    return CATEGORIES[int(found.argmax())]


def _present(judge: JudgeScorer, pictures: Sequence[Image.Image]) -> Tensor:
    """(B, categories): the probability that a picture shows such an object."""
    return judge.assess(to_tensor(list(pictures))).present.sigmoid()


def pictures_of(folder: Path, arm: str, subject: str) -> list[Image.Image]:
    """The pictures of a subject at an arm's last step."""
    with Image.open(folder / "scores" / arm / f"{subject}.png") as painted:
        side = painted.height
        return [painted.crop((left, 0, left + side, side)).convert("RGB") for left in range(0, painted.width, side)]


def album_of(folder: Path, entry: Mapping[str, Any]) -> list[Image.Image]:
    """The pictures from which a subject is learned."""
    files = [(folder / "subjects" / name).read_bytes() for name in entry["album"]]
    return [Image.open(BytesIO(file)).convert("RGB") for file in files]


def measure(judge: JudgeScorer, folder: Path, arm: str, entry: Mapping[str, Any]) -> dict[str, float]:
    """The means of all scores over a subject's pictures."""
    neighbour = neighbour_of(judge, album_of(folder, entry), entry["category"])
    present = _present(judge, pictures_of(folder, arm, entry["subject"]))
    own, beside = (CATEGORIES.index(category) for category in (entry["category"], neighbour))
    others = [index for index in range(len(CATEGORIES)) if index != own]
    values = {"subject": present[:, own], "neighbour": present[:, beside], "another": present[:, others].amax(1)}
    return {score: float(values[score].mean()) for score in SCORES}


def table(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A line for each arm: means over subjects with intervals, and the paired differences from no MLM loss."""
    head = ["arm", *SCORES.values(), *(f"{name}, difference" for name in SCORES.values())]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for arm, subjects in results.items():
        cells = [_shown([own[score] for own in subjects.values()], list(subjects)) for score in SCORES]
        for score in SCORES:
            paired = [own[score] - results[_REFERENCE][name][score] for name, own in subjects.items()]
            cells.append("" if arm in (CLASS_WORD, _REFERENCE) else _shown(paired, list(subjects), "+"))
        lines.append(f"| {ARMS[arm]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(values: Sequence[float], subjects: Sequence[str], sign: str = "") -> str:
    return f"{bootstrap_interval(values, subjects):{sign}.2f}"


def draw_sheet(folder: Path, entries: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw the album of each subject, and below it a row for each arm."""
    rows = []
    for entry in entries:
        rows.append((f"{entry['word']}: the album", album_of(folder, entry)))
        rows += [(label, pictures_of(folder, arm, entry["subject"])[:_PICTURES]) for arm, label in ARMS.items()]
    write_sheet([(label, row(pictures)) for label, pictures in rows], file, _LABEL)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and draw the sheet."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--concepts", type=Path, required=True, help="the output of customization_methods")
    parser.add_argument("--sheet", type=Path, help="where to draw pictures of the first subjects")
    options = parser.parse_args(arguments)
    listing = json.loads((options.concepts / "subjects" / "subjects.json").read_text())
    painted = {file.stem for file in (options.concepts / "scores" / CLASS_WORD).glob("*.json")}
    entries = [entry for entry in listing if entry["subject"] in painted]
    judge = JudgeScorer.from_pretrained(WEIGHTS_FOLDER / "judge")
    results = {
        arm: {entry["subject"]: measure(judge, options.concepts, arm, entry) for entry in entries} for arm in ARMS
    }
    print(table(results))
    if options.sheet:
        draw_sheet(options.concepts, entries[:_SHOWN], options.sheet)


if __name__ == "__main__":
    main()
