"""Two learned concepts in one prompt: pictures of each, of both together and of their class words alone.

    python -m tests.benchmarks.two_concepts --sheet docs/two_concepts.png
    python -m tests.benchmarks.two_concepts --pairs 1 --methods xti

Hardware and time: a core; half a minute for each method and pair. It needs no finished run.

Subjects are the first held-out object of each category that the micro Stable Diffusion knows, in pairs. Each concept is
learned by itself from its subject's views, with the method's micro defaults but no MLM loss and no class pictures. Then
`load_concept` puts the folders of a pair into one pipeline. All rows have the same noise. The judge gives the subject
similarity of whole pictures to the views, and the probability that a picture shows an object of a category. Where both
subjects are named, each is scored in turn. Intervals are over pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from transformers.utils.logging import disable_progress_bar

from model.backbone import load_backbone
from model.concepts.customization_settings import Method
from model.concepts.loading import load_concept, unload_concepts
from model.guidance.settings import InferenceSettings
from model.micro_sd.weights import WEIGHTS_FOLDER
from model.microworld.captions import BACKGROUND_PHRASES, article
from model.microworld.shapes import CATEGORIES, TRAINED_CATEGORIES
from model.pictures.decoding import load_picture
from model.pictures.sheets import row
from model.pictures.tensors import to_tensor
from model.pipeline import RealCustomPipeline
from model.scoring.metrics import JudgeScorer, bootstrap_interval, subject_similarity
from pipelines.config.loading import load_config
from pipelines.execution.environment import set_environment
from stages.config import Config
from tests.benchmarks.customization_methods import find_subjects
from tests.benchmarks.support.command_line import benchmark_parser
from tests.benchmarks.support.concept_training import AlbumSubject, trained_concept
from tests.benchmarks.support.customization_arms import METHODS
from tests.benchmarks.support.labelled_sheet import write_sheet

PLACEHOLDERS = ("[v1]", "[v2]")
#: Phrases of three words: with three vectors for each concept, a prompt fills the micro text encoder's 14 tokens.
PLACES = tuple(BACKGROUND_PHRASES[name][0] for name in ("snow", "beach", "grass", "ocean"))
SCORES = ("similarity to its own subject", "to the other one", "shows its own category", "the other one")
_CLASS_WORDS = "class words alone"
_SHOWN = ("mug", "robot")  # the pair of the sheet
_NAMED = ((0,), (1,), (0, 1))  # which of the two subjects a prompt names
_LABEL = 240  # pixels

Pair = tuple[AlbumSubject, AlbumSubject]
#: The pictures of prompts that name these subjects, one for each place.
Painted = Mapping[tuple[int, ...], Sequence[Image.Image]]


@dataclass(frozen=True)
class Score:
    """Of a picture, for one of the subjects that it should show; in the order of `SCORES`."""

    pair: str
    values: tuple[float, ...]


def find_pairs(folder: Path, count: int, config: Config) -> list[Pair]:
    """Pairs of held-out subjects, each category once; a subject's album is its views."""
    found = find_subjects(folder, len(TRAINED_CATEGORIES), config)
    by_word = {subject.word: replace(subject, album=subject.views) for subject in found}
    words = [*_SHOWN, *(word for word in by_word if word not in _SHOWN)]
    pairs = zip(words[::2], words[1::2], strict=False)
    return [(by_word[first], by_word[second]) for first, second in pairs][:count]


def learn(folder: Path, pair: Pair, config: Config) -> list[Path]:
    """The concept folder of each subject, learned by itself."""
    found = []
    for subject, placeholder in zip(pair, PLACEHOLDERS, strict=True):
        steps = trained_concept(folder / subject.name, subject, config, placeholder=placeholder)
        found.append(steps[max(steps)])
    return found


def names_of(pair: Pair, *, learned: bool) -> list[str]:
    """How a prompt names the subjects."""
    if not learned:
        return [article(subject.word) for subject in pair]
    return [f"a {placeholder} {subject.word}" for placeholder, subject in zip(PLACEHOLDERS, pair, strict=True)]


def paint(pipeline: RealCustomPipeline, pair: Pair, concepts: Sequence[Path], settings: InferenceSettings) -> Painted:
    """Pictures of each subject and of both; without `concepts` of their class words."""
    names = names_of(pair, learned=bool(concepts))
    painted: dict[tuple[int, ...], list[Image.Image]] = {}
    for named in _NAMED:
        prompts = [f"{' and '.join(names[number] for number in named)} {place}" for place in PLACES]
        if concepts:
            load_concept(pipeline, *(concepts[number] for number in named))
        painted[named] = pipeline(prompts, settings=settings).images
        unload_concepts(pipeline)
    return painted


def learn_and_paint(
    folder: Path, pipeline: RealCustomPipeline, pair: Pair, configs: Mapping[Method, Config]
) -> dict[str, Painted]:
    """The pictures of the class words and of each method's concepts."""
    settings = replace(InferenceSettings(), mask_steps=None)
    painted = {_CLASS_WORDS: paint(pipeline, pair, [], settings)}
    for method, config in configs.items():
        painted[METHODS[method]] = paint(pipeline, pair, learn(folder / method, pair, config), settings)
    return painted


def scores_of(judge: JudgeScorer, pair: Pair, painted: Painted) -> dict[bool, list[Score]]:
    """The scores of pictures of one subject (False) and of both (True)."""
    found: dict[bool, list[Score]] = {False: [], True: []}
    views = [judge.embed_subjects(to_tensor([load_picture(view) for view in subject.views])) for subject in pair]
    categories = [CATEGORIES.index(subject.word) for subject in pair]
    name = " + ".join(subject.name for subject in pair)
    for named, pictures in painted.items():
        verdict = judge.assess(to_tensor(list(pictures)))
        similarity = [subject_similarity(verdict.identity, [own] * len(pictures)) for own in views]
        shows = verdict.present.sigmoid()[:, categories].T
        for own in named:
            values = (similarity[own], similarity[1 - own], shows[own], shows[1 - own])
            found[len(named) > 1] += [
                Score(name, tuple(float(value) for value in one)) for one in zip(*values, strict=True)
            ]
    return found


def table(results: Mapping[str, Mapping[bool, Sequence[Score]]]) -> str:
    """Two lines for each arm: means with intervals over pairs."""
    lines = [f"| concepts | in the prompt | {' | '.join(SCORES)} |", "|---" * (len(SCORES) + 2) + "|"]
    for label, own in results.items():
        for both, scores in own.items():
            cells = [_shown([(score.pair, score.values[number]) for score in scores]) for number in range(len(SCORES))]
            if both:  # each subject is the other's other one
                cells[1::2] = "", ""
            lines.append(f"| {label} | {'both' if both else 'one'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(values: Sequence[tuple[str, float]]) -> str:
    pairs, own = zip(*values, strict=True)
    return f"{bootstrap_interval(own, pairs):.2f}"


def sheet_rows(pair: Pair, painted: Mapping[str, Painted]) -> list[tuple[str, Image.Image]]:
    """The views of both subjects, and below them the pictures of each arm."""
    rows = [(f"the {one.word}", row([load_picture(view) for view in one.views[: len(PLACES)]])) for one in pair]
    for label, own in painted.items():
        names = names_of(pair, learned=label != _CLASS_WORDS)
        for named, pictures in own.items():
            rows.append((f"{label}: {' and '.join(names[one] for one in named)}", row(pictures)))
    return rows


def _config(method: Method, seed: int) -> Config:
    values = ["customize.mlm=false", "customize.prior_weight=0", f"run.seed={seed}"]
    return load_config("micro", [f"customize.method={method}", *values])


def main(arguments: Sequence[str] | None = None) -> None:
    """Learn, paint, print the table and draw the sheet."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=len(TRAINED_CATEGORIES) // 2, help="of subjects")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["textual_inversion", "custom_diffusion"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="where to draw the pictures of the first pair")
    options = parser.parse_args(arguments)
    set_environment("micro")
    disable_progress_bar()
    configs = {method: _config(method, options.seed) for method in options.methods}
    pipeline = RealCustomPipeline(load_backbone(WEIGHTS_FOLDER))
    judge = JudgeScorer.from_pretrained(WEIGHTS_FOLDER / "judge")
    results: dict[str, dict[bool, list[Score]]] = {}
    with TemporaryDirectory() as scratch:
        pairs = find_pairs(Path(scratch) / "subjects", options.pairs, configs[options.methods[0]])
        for pair in pairs:
            painted = learn_and_paint(Path(scratch), pipeline, pair, configs)
            for label, own in painted.items():
                scores = scores_of(judge, pair, own)
                kept = results.setdefault(label, {False: [], True: []})
                results[label] = {both: kept[both] + scores[both] for both in kept}
            if options.sheet and pair is pairs[0]:
                write_sheet(sheet_rows(pair, painted), options.sheet, _LABEL)
    print(table(results))


if __name__ == "__main__":
    main()
