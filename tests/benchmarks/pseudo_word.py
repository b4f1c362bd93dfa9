"""How a regularised pseudo-word changes the words beside it (RealCustom++, Table I and Fig. 5).

    python -m tests.benchmarks.pseudo_word --output runs/pseudo_word
    python -m tests.benchmarks.pseudo_word --output runs/small --subjects 2 --steps 10

Hardware and time: a core; about ten seconds for each subject and weight, eleven minutes in all. It needs no finished
run.

As in the paper, Textual Inversion learns one vector S* in place of the noun ("a photo of a S*") from a held-out
subject's album, with the loss L = L_diffusion + lambda R. R is the paper's |S*|_1; or |S* - noun|_1, which keeps S*
near its first value, the noun's embedding. Then "a S* in the desert" and "a mug in the desert" are encoded. Semantic
similarity is the cosine of the states of "desert" in the two; here a mean over all places of the microworld. Subject
similarity and prompt fidelity of pictures of S* are those of `customization_methods` (Fig. 5).
Intervals are over subjects; each word is trained once. A finished subject is a JSON file in `--output`, which the same
command does not make again.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from model.backbone import Backbone
from model.concepts.customization_settings import ConceptSubject
from model.concepts.customization_task import CustomizationTask
from model.concepts.loading import load_concept, unload_concepts
from model.micro_sd.weights import WEIGHTS_FOLDER
from model.microworld.captions import BACKGROUND_PHRASES
from model.scoring.metrics import bootstrap_interval
from pipelines.config.loading import load_config
from pipelines.execution.environment import set_environment
from stages.config import Config
from stages.customize.preparation import customization_settings
from tests.benchmarks.context_overfitting import context_of, encode
from tests.benchmarks.customization_methods import find_subjects
from tests.benchmarks.support.command_line import benchmark_parser
from tests.benchmarks.support.concept_painting import ConceptPainter
from tests.benchmarks.support.concept_training import PLACEHOLDER, AlbumSubject, Optimizer
from tests.benchmarks.support.results_folder import claim, write_whole

WEIGHTS = (1e-4, 5e-4, 1e-3, 1e-2)  # the paper has the first three, and 0
TOWARDS = {"zero": "norm of S*", "noun": "distance of S* from the noun"}
NONE = "none"
SCORES = {
    "words": "words for places, similarity",
    "similarity": "subject similarity",
    "fidelity": "background as the prompt says",
}
NORM = "l1 norm of S*"


@dataclass(frozen=True)
class Regularization:
    """lambda times the l1 distance of S* from zero or from the noun."""

    towards: str
    weight: float

    @property
    def name(self) -> str:
        """Of the folder of its results."""
        return f"{self.towards}-{self.weight:g}" if self.weight else NONE

    def __call__(self, vector: Tensor, noun: Tensor) -> Tensor:
        """The term () of the loss."""
        distance = vector - noun if self.towards == "noun" else vector
        return self.weight * distance.abs().sum()


REGULARIZATIONS = (
    Regularization("zero", 0.0),
    *(Regularization(name, weight) for name in TOWARDS for weight in WEIGHTS),
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What all results in a folder have in common."""

    subjects: int
    prompts: int
    steps: int
    painting_steps: int
    seed: int

    def config(self) -> Config:
        """Textual Inversion of one vector without the MLM loss, with this budget."""
        values = {
            "run.seed": self.seed,
            "inference.steps": self.painting_steps,
            "customize.steps": self.steps,
            "customize.mlm": "false",
            "customize.vectors": 1,
            "customize.trainer.schedule": "constant",
        }
        return load_config("micro", [f"{key}={value}" for key, value in values.items()])


def train_pseudo_word(subject: AlbumSubject, regularization: Regularization, config: Config, folder: Path) -> float:
    """Learn S* and write it to `folder`; returns its l1 norm."""
    learned_from = ConceptSubject(
        name=subject.name,
        word=subject.word,
        placeholder=PLACEHOLDER,
        pictures=subject.album,
        captions=(f"a photo of a {PLACEHOLDER}",) * len(subject.album),
    )
    settings = customization_settings(config)
    task = CustomizationTask(
        backbone=str(WEIGHTS_FOLDER), subjects=(learned_from,), settings=settings, seed=config.run.seed
    )
    module = task.module().train()
    (vector,) = module.learned.parameters()
    noun = vector.detach().clone()  # where it starts
    optimizer = Optimizer(module, {}, config.customize.trainer, config.customize.steps)
    for step in range(config.customize.steps):
        loss = module(task.batch(step, 0, 1))["loss"] + regularization(vector, noun)
        optimizer.step(loss, step)
    task.export(module, folder)
    return float(vector.detach().abs().sum())


@torch.no_grad()
def words_similarity(backbone: Backbone, word: str) -> float:
    """The mean cosine of the words for places in prompts with the loaded S* and with the noun in its place."""
    phrases = [phrases[0] for phrases in BACKGROUND_PHRASES.values()]
    named, plain = (encode(backbone, [f"a {name} {phrase}" for phrase in phrases]) for name in (PLACEHOLDER, word))
    context = context_of(backbone, plain.ids)
    return float(torch.cosine_similarity(named.states, plain.states, dim=-1)[context].mean())


def measure(painter: ConceptPainter, subject: AlbumSubject, regularization: Regularization) -> dict[str, float]:
    """The scores of a pseudo-word that is trained for this."""
    with tempfile.TemporaryDirectory() as scratch:
        norm = train_pseudo_word(subject, regularization, painter.config, Path(scratch) / "concept")
        load_concept(painter.pipeline, Path(scratch) / "concept")
        try:
            words = words_similarity(painter.pipeline.backbone, subject.word)
            rows = painter.paint(subject, PLACEHOLDER).rows
        finally:
            unload_concepts(painter.pipeline)
    similarity, fidelity = (sum(row[key] for row in rows) / len(rows) for key in ("similarity", "fidelity"))
    return {"words": words, "similarity": similarity, "fidelity": fidelity, "norm": norm}


def table(results: dict[Regularization, dict[str, dict[str, float]]]) -> str:
    """A line for each R and lambda: means over subjects with intervals, and the paired differences from lambda 0."""
    head = ["R", "lambda", NORM, *SCORES.values(), *(f"{name}, difference" for name in SCORES.values())]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    plain = next(iter(results.values()))
    for regularization, subjects in results.items():
        norm = statistics.mean(own["norm"] for own in subjects.values())
        cells = [_shown([own[score] for own in subjects.values()], list(subjects)) for score in SCORES]
        for score in SCORES:
            paired = [own[score] - plain[name][score] for name, own in subjects.items()]
            cells.append(_shown(paired, list(plain), "+") if regularization.weight else "")
        penalty = TOWARDS[regularization.towards] if regularization.weight else ""
        lines.append(f"| {penalty} | {regularization.weight:g} | {norm:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(values: Sequence[float], subjects: Sequence[str], sign: str = "") -> str:
    return f"{bootstrap_interval(values, subjects):{sign}.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and print the table."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--painting-steps", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    budget = Budget(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Budget)})
    set_environment("micro")
    disable_progress_bar()
    claim(options.output, budget)
    config = budget.config()
    subjects = find_subjects(options.output / "subjects", budget.subjects, config)
    painter = ConceptPainter(config, budget.prompts)
    results: dict[Regularization, dict[str, dict[str, float]]] = {}
    for regularization in REGULARIZATIONS:
        for subject in subjects:
            file = options.output / regularization.name / f"{subject.name}.json"
            file.parent.mkdir(exist_ok=True)
            if not file.exists():
                write_whole(file, measure(painter, subject, regularization))
            results.setdefault(regularization, {})[subject.name] = json.loads(file.read_text())
    print(table(results))


if __name__ == "__main__":
    main()
