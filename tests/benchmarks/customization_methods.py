"""Subject similarity and prompt fidelity of the customization methods, with and without MLM, ICO and DCI.

    python -m tests.benchmarks.customization_methods --output runs/concepts
    python -m tests.benchmarks.customization_methods --output runs/small --subjects 2 --steps-scale 0.1

Hardware and time: CPUs. For each subject and arm 10 to 25 CPU seconds, with DCI 4; all experiments take about three
quarters of an hour on an idle core. It needs no finished run.

Subjects are the first held-out object of each category that the micro Stable Diffusion knows. Each is learned from its
album, to which a method can overfit: one background, one neighbour, almost one pose. The trainings have the product's
examples, losses and micro defaults, without Ray and DeepSpeed. At several steps each concept paints one picture for
each prompt, which are the microworld's backgrounds; all arms paint with the same noise. Subject similarity is to views
of the subject in other places, which no training sees. Prompt fidelity is the judge's probability of the background
that the prompt names, and CLIP-T with the prompt without V*. Neither psi nor the MLM loss sees the prompts that are
painted. Intervals are over subjects: each concept is trained once.

Experiments: `mlm` (Contextualizer, Table 2), `lambda` (Table 3), `mask_rate` (Table 4), `tailored` (Sec. 5.3),
`resize` (Custom Diffusion's augmentation), `ico` (Customized Generation Reimagined, Figs. 6 and 8) and `dci` (its
lambda, with as many passes in all as without DCI). A finished subject of an arm is a JSON file in `--output`, which the
same command does not make again. The benchmark prints the tables of all finished arms, and draws `curves.png` and
`pictures.png`. "Above a curve" is the subject similarity minus that of a curve over the steps at the same prompt
fidelity.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from model.concepts.loading import load_concept, unload_concepts
from model.microworld.shapes import TRAINED_CATEGORIES
from model.pictures.sheets import row
from pipelines.config.loading import load_config
from pipelines.execution.environment import set_environment
from stages.config import Config
from stages.microworld.subjects import write_subjects
from tests.benchmarks.support.command_line import benchmark_parser
from tests.benchmarks.support.concept_painting import ConceptPainter, Painted
from tests.benchmarks.support.concept_training import (
    PLACEHOLDER,
    AlbumSubject,
    rich_prompts,
    trained_concept,
    trained_contextualizer,
)
from tests.benchmarks.support.customization_arms import EXPERIMENTS, Arm
from tests.benchmarks.support.customization_figures import draw_pictures, plot_curves
from tests.benchmarks.support.customization_table import CLASS_WORD, markdown, read_results
from tests.benchmarks.support.results_folder import claim, write_whole


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What all results in a folder have in common."""

    subjects: int
    prompts: int
    steps_scale: float
    painting_steps: int
    seed: int

    def config(self, arm: Arm | None = None) -> Config:
        """The default configuration with this budget and an arm's settings."""
        common = {"run.seed": self.seed, "inference.steps": self.painting_steps}
        config = load_config("micro", _texts(common | dict(arm.values if arm else {})))
        if arm is None:
            steps = max(1, round(config.contextualizer.steps * self.steps_scale))
            return load_config("micro", _texts(common | {"contextualizer.steps": steps}))
        own = config.customize
        scaled = {
            "customize.steps": max(1, round(own.steps * self.steps_scale)),
            "customize.sample_every": max(1, round((own.sample_every or own.steps) * self.steps_scale)),
        }
        return load_config("micro", _texts(common | dict(arm.values) | scaled))


def _texts(values: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value).strip(chr(34))}" for key, value in values.items()]


def find_subjects(folder: Path, count: int, config: Config) -> list[AlbumSubject]:
    """The first subject of each trained category, at most `count`; they are rendered into `folder` if it is not there.

    Raises:
        SystemExit: There are fewer.
    """
    if not folder.exists():
        scratch = folder.with_name(f"{folder.name}.{os.getpid()}")
        write_subjects(scratch, config.microworld.picture_size, config.run.seed)
        scratch.rename(folder)
    listing = json.loads((folder / "subjects.json").read_text())
    first = {entry["category"]: entry for entry in reversed(listing) if entry["category"] in TRAINED_CATEGORIES}
    chosen = [entry for entry in listing if entry in first.values()]
    if len(chosen) < count:
        sys.exit(f"--subjects {count}: there are {len(chosen)} categories.")
    return [AlbumSubject.of(entry, folder) for entry in chosen[:count]]


class Benchmark:
    """The subjects, models and results in `output`."""

    def __init__(self, output: Path, budget: Budget) -> None:
        self.output, self.budget = output, budget
        self.config = budget.config()
        self.subjects = find_subjects(output / "subjects", budget.subjects, self.config)
        self.painter = ConceptPainter(self.config, budget.prompts)
        self._evaluation = [prompt for subject in self.subjects for prompt in self.painter.prompts(subject.word)]
        self._psi = trained_contextualizer(output / "contextualizer", self.config, self._evaluation)

    def score_class_words(self) -> None:
        """Paint the class words alone: where all curves begin."""
        for subject in self.subjects:
            if not self._file(CLASS_WORD, subject).exists():
                self._write(CLASS_WORD, subject, {0: self.painter.paint(subject, subject.word)})

    def score(self, arm: Arm) -> None:
        """Train, paint and score what is missing of an arm."""
        config = self.budget.config(arm)
        for subject in self.subjects:
            if self._file(arm.name, subject).exists():
                continue
            folders = self._train(arm, subject, config)
            if arm.strength is not None:  # of the trained concept only
                folders = {max(folders): folders[max(folders)]}
            painted = {step: self._paint(subject, folder, arm.strength) for step, folder in folders.items()}
            self._write(arm.name, subject, painted)
            print(f"{arm.name} {subject.name}", flush=True)

    def _train(self, arm: Arm, subject: AlbumSubject, config: Config) -> dict[int, Path]:
        rich: Sequence[str] = ()
        if config.customize.mlm:
            rich = rich_prompts(subject.word, self.config, self._evaluation, tailored=arm.tailored)
        folder = self.output / "concepts" / arm.training / subject.name
        return trained_concept(folder, subject, config, contextualizer=self._psi, rich=rich)

    def _paint(self, subject: AlbumSubject, folder: Path, strength: float | None) -> Painted:
        load_concept(self.painter.pipeline, folder)
        try:
            return self.painter.paint(subject, f"{PLACEHOLDER} {subject.word}", strength)
        finally:
            unload_concepts(self.painter.pipeline)

    def _file(self, name: str, subject: AlbumSubject) -> Path:
        return self.output / "scores" / name / f"{subject.name}.json"

    def _write(self, name: str, subject: AlbumSubject, painted: dict[int, Painted]) -> None:
        file = self._file(name, subject)
        file.parent.mkdir(parents=True, exist_ok=True)
        row(painted[max(painted)].pictures).save(file.with_suffix(".png"))
        write_whole(file, {step: own.rows for step, own in painted.items()})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and print the tables."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), metavar="NAME")
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--steps-scale", type=float, default=1.0, help="of the training steps")
    parser.add_argument("--painting-steps", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    budget = Budget(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Budget)})
    set_environment("micro")
    disable_progress_bar()
    claim(options.output, budget)
    benchmark = Benchmark(options.output, budget)
    arms = {arm.name: arm for name in options.experiments for arm in EXPERIMENTS[name]}
    for arm in arms.values():
        benchmark.score(arm)
    benchmark.score_class_words()
    results = read_results(options.output / "scores", [subject.name for subject in benchmark.subjects])
    print(f"\n{markdown(results)}")
    plot_curves(results, options.output / "curves.png")
    draw_pictures(options.output / "scores", results, options.output / "pictures.png")


if __name__ == "__main__":
    main()
