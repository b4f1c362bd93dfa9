"""A subject in the place of its own word, of a coarse one, and of another thing's (RealCustom, Sec. 6.3 and Fig. 11).

    python -m tests.benchmarks.another_word --sheet docs/another_word.png
    python -m tests.benchmarks.another_word --subjects 2 --painting-steps 8

Hardware and time: a core; four minutes. It needs no finished run.

The paper shows that a corgi stays itself in the place of "corgi", "dog" or "animal", and that in the place of "parrot"
it makes a new creature: a parrot with the corgi's appearance. Here the shipped RealCustom++ adapter gets a held-out
subject of each category that the base model knows. Its words are its category; "toy", which all objects are called; and
the category six further in the list. Ten prompts for each, with mask and the same noise in all arms. Subject
similarity is to the subject's other views. The judge also says which category each picture shows, and whether its main
colour is the reference's. Intervals are over subjects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from transformers.utils.logging import disable_progress_bar

from model.guidance.settings import InferenceSettings
from model.micro_sd.shipped_adapter import find_shipped_model
from model.micro_sd.weights import WEIGHTS_FOLDER
from model.microworld.captions import BACKGROUND_PHRASES, GENERIC_NOUN
from model.microworld.shapes import TRAINED_CATEGORIES
from model.pictures.decoding import load_picture
from model.pictures.sheets import column, row
from model.pictures.tensors import to_tensor
from model.pipeline import RealCustomPipeline
from model.scoring.metrics import JudgeScorer, bootstrap_interval, subject_similarity
from pipelines.config.loading import load_config
from pipelines.execution.environment import set_environment
from tests.benchmarks.customization_methods import find_subjects
from tests.benchmarks.support.command_line import benchmark_parser
from tests.benchmarks.support.concept_training import AlbumSubject

SCORES = {
    "similarity": "subject similarity",
    "word": "category is the other word's",
    "subject": "category is the subject's",
    "colour": "main colour is the subject's",
    "background": "background as the prompt says",
}
_BACKGROUNDS = tuple(BACKGROUND_PHRASES)
_SHOWN = 4  # subjects of the sheet
_FURTHER = 6  # places in the list of categories

#: Arm -> the scores of all pictures, with "subject_name", in the same order in all arms.
Results = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Arm:
    """What is painted: in the place of which word, and whether from the reference."""

    label: str
    word: str  # own, generic or other
    reference: bool

    def noun(self, subject: AlbumSubject) -> str:
        """The word of the prompt."""
        return {"own": subject.word, "generic": GENERIC_NOUN, "other": other_word(subject.word)}[self.word]


ARMS = (
    Arm("own word, text only", "own", reference=False),
    Arm("other word, text only", "other", reference=False),
    Arm("own word", "own", reference=True),
    Arm(f'"{GENERIC_NOUN}"', "generic", reference=True),
    Arm("other word", "other", reference=True),
)


def other_word(word: str) -> str:
    """A category that has nothing to do with this one."""
    return TRAINED_CATEGORIES[(TRAINED_CATEGORIES.index(word) + _FURTHER) % len(TRAINED_CATEGORIES)]


def prompts_with(noun: str) -> list[str]:
    """The prompts of a subject."""
    return [f"a photo of a {noun} {BACKGROUND_PHRASES[background][0]}" for background in _BACKGROUNDS]


def paint(
    pipeline: RealCustomPipeline, arm: Arm, subject: AlbumSubject, settings: InferenceSettings
) -> list[Image.Image]:
    """The pictures of an arm, one for each prompt."""
    noun = arm.noun(subject)
    if not arm.reference:
        return pipeline(prompts_with(noun), settings=settings).images
    return pipeline(prompts_with(noun), load_picture(subject.views[0]), noun, settings=settings).images


def scores_of(judge: JudgeScorer, subject: AlbumSubject, pictures: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """The scores of a subject's pictures."""
    painted, views = to_tensor(list(pictures)), to_tensor([load_picture(view) for view in subject.views])
    verdict, real = judge.assess(painted), judge.assess(views)
    similarity = subject_similarity(verdict.identity, [real.identity[1:]] * len(painted))
    category, colour = verdict.category.argmax(-1), verdict.colour.argmax(-1)
    other, own = (TRAINED_CATEGORIES.index(word) for word in (other_word(subject.word), subject.word))
    values = {
        "similarity": similarity,
        "word": category == other,
        "subject": category == own,
        "colour": colour == real.colour[0].argmax(-1),
        "background": judge.background_probability(painted, _BACKGROUNDS),
    }
    listed = torch.stack([values[score].float() for score in SCORES], 1).tolist()
    return [dict(zip(SCORES, own_values, strict=True)) | {"subject_name": subject.name} for own_values in listed]


def table(results: Results) -> str:
    """A line for each arm: means with intervals over subjects; last the gain of the reference at the other word."""
    lines = [f"| in the place of | {' | '.join(SCORES.values())} |", "|---" * (len(SCORES) + 1) + "|"]
    for label, rows in results.items():
        cells = [_shown([one[score] for one in rows], rows) for score in SCORES]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    plain, painted = (results[arm.label] for arm in ARMS if arm.word == "other")
    gains = [
        _shown([one[score] - before[score] for one, before in zip(painted, plain, strict=True)], plain, "+")
        for score in SCORES
    ]
    return "\n".join([*lines, f"| other word: difference from text only | {' | '.join(gains)} |"])


def _shown(values: Sequence[float], rows: Sequence[Mapping[str, Any]], sign: str = "") -> str:
    return f"{bootstrap_interval(values, [one['subject_name'] for one in rows]):{sign}.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Paint, print the table and draw the sheet."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--subjects", type=int, default=len(TRAINED_CATEGORIES))
    parser.add_argument("--painting-steps", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0, help="of the subjects")
    parser.add_argument("--sheet", type=Path, help="where to draw the reference and a picture of each arm")
    options = parser.parse_args(arguments)
    set_environment("micro")
    disable_progress_bar()
    config = load_config("micro", [f"run.seed={options.seed}"])
    with TemporaryDirectory() as scratch:
        subjects = find_subjects(Path(scratch) / "subjects", options.subjects, config)
    judge = JudgeScorer.from_pretrained(WEIGHTS_FOLDER / "judge")
    pipeline = find_shipped_model().load()
    settings = InferenceSettings().with_steps(options.painting_steps)
    results: dict[str, list[dict[str, Any]]] = {arm.label: [] for arm in ARMS}
    sheet = []
    for subject in subjects:
        painted = {arm.label: paint(pipeline, arm, subject, settings) for arm in ARMS}
        for label, pictures in painted.items():
            results[label] += scores_of(judge, subject, pictures)
        sheet.append(row([load_picture(subject.views[0]), *(pictures[2] for pictures in painted.values())]))
    print(table(results))
    if options.sheet:
        column(sheet[:_SHOWN]).save(options.sheet)


if __name__ == "__main__":
    main()
