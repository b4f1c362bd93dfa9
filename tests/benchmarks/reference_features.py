"""What can be read of a reference's pattern and second colour from pixels, encoders' features and adapter's tokens.

    python -m tests.benchmarks.reference_features
    python -m tests.benchmarks.reference_features --backbone FOLDER --adapter FOLDER

Hardware and time: two cores; ten minutes. The adapter must be trained on the backbone.

A reader, a small transformer, is trained for each source and question, on single objects that the adapters' pictures
show; it is tested on objects that no training shows. The sources are patches of 8 x 8 pixels; the frozen encoders'
features of the whole picture, all levels; and the tokens that the adapter's projector makes of them and of those of the
high-resolution tiles. All readers have the same form, pictures and steps, so that their difference is that of the
sources. The judge, which saw far more pictures, answers the same questions.

The accuracy is over patterned objects, which have one of four patterns and one of nine second colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar

from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.errors import ModelError
from model.micro_sd.judge import Judge
from model.micro_sd.shipped_adapter import ADAPTER_FOLDER
from model.micro_sd.weights import WEIGHTS_FOLDER
from model.microworld.appearance import PATTERN_NAMES, PLAIN, SECOND_COLOUR_NAMES, Appearance, visible_appearances
from model.microworld.scenes import SceneShares, draw_specs, render_scenes
from model.pipeline import RealCustomPipeline
from model.scoring.metrics import JudgeScorer
from tests.benchmarks.support.command_line import benchmark_parser

CLASSES = {"pattern": len(PATTERN_NAMES), "second colour": len(SECOND_COLOUR_NAMES)}  # by question
_PATCH = 8  # pixels
_CHUNK = 100
_EPOCHS, _BATCH, _LEARNING_RATE = 12, 64, 2e-3


@dataclass(frozen=True)
class References:
    """N pictures of one patterned object each."""

    pictures: Tensor  # (N, 3, S, S) in [0, 1]
    answers: dict[str, Tensor]  # question -> class (N,)


def patterned_references(split: str, count: int, seed: int) -> References:
    """About 0.55 of `count` drawn scenes: those whose view shows a pattern."""
    specs = draw_specs(split, count, seed, shares=SceneShares(two_objects=0.0))
    seen = visible_appearances([spec.subject for spec in specs])
    chosen = [number for number, appearance in enumerate(seen) if appearance.pattern != PLAIN]
    images = render_scenes([specs[number] for number in chosen]).image
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return References(pictures, _answers([seen[number] for number in chosen]))


def _answers(appearances: Sequence[Appearance]) -> dict[str, Tensor]:
    return {
        "pattern": torch.tensor([PATTERN_NAMES.index(own.pattern) for own in appearances]),
        "second colour": torch.tensor([SECOND_COLOUR_NAMES.index(own.second_colour) for own in appearances]),
    }


@torch.no_grad()
def sources(pipeline: RealCustomPipeline, pictures: Tensor) -> dict[str, Tensor]:
    """Name -> tokens (N, n, c) of pictures (N, 3, S, S), in half precision."""
    found = [_sources_of(pipeline, chunk) for chunk in pictures.split(_CHUNK)]
    return {name: torch.cat([one[name] for one in found]) for name in found[0]}


def _sources_of(pipeline: RealCustomPipeline, pictures: Tensor) -> dict[str, Tensor]:
    encoders, adapter = pipeline.image_encoders, pipeline.adapter
    assert encoders is not None
    assert isinstance(adapter, RealCustomPlusAdapter)  # checked by `main`
    features = encoders.features(pictures)
    levels = features.shallow.split(features.deep.shape[1], 1)
    tokens = {
        "pixels": F.unfold(pictures, _PATCH, stride=_PATCH).transpose(1, 2),
        "encoders' features": torch.cat([features.deep, *levels], 2),
        "adapter's tokens": adapter.projector(features),
    }
    return {name: tensor.half() for name, tensor in tokens.items()}


class Reader(nn.Module):
    """A transformer over n tokens of width c that answers one question."""

    def __init__(self, tokens: int, width: int, classes: int, hidden: int = 64) -> None:
        super().__init__()
        self.project = nn.Linear(width, hidden)
        self.places = nn.Parameter(0.02 * torch.randn(tokens, hidden))
        layer = nn.TransformerEncoderLayer(hidden, 4, 2 * hidden, 0.1, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.answer = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, classes))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, n, c) -> logits (B, classes)."""
        answer: Tensor = self.answer(self.layers(self.project(tokens) + self.places).mean(1))
        return answer


def reading_accuracy(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int, epochs: int = _EPOCHS
) -> float:
    """Train a reader on tokens (N, n, c) and answers (N,); its share of right answers in the test."""
    torch.manual_seed(0)
    mean, spread = train[0].float().mean((0, 1)), train[0].float().std((0, 1)) + 1e-4
    _, count, width = train[0].shape
    reader = Reader(count, width, classes)
    optimizer = torch.optim.AdamW(reader.parameters(), _LEARNING_RATE, weight_decay=0.05)
    steps = epochs * math.ceil(len(train[1]) / _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(train[1])).split(_BATCH):
            logits = reader((train[0][rows].float() - mean) / spread)
            optimizer.zero_grad()
            F.cross_entropy(logits, train[1][rows]).backward()
            optimizer.step()
            schedule.step()
    reader.eval()
    with torch.no_grad():
        read = torch.cat([reader((chunk.float() - mean) / spread).argmax(1) for chunk in test[0].split(_CHUNK)])
    return float((read == test[1]).float().mean())


def judge_accuracy(judge: Judge, references: References) -> dict[str, float]:
    """The judge's share of right answers by question."""
    found = _answers(JudgeScorer(judge).appearances(references.pictures))
    return {question: float((found[question] == references.answers[question]).float().mean()) for question in CLASSES}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--backbone", type=Path, default=WEIGHTS_FOLDER)
    parser.add_argument("--adapter", type=Path, default=ADAPTER_FOLDER)
    parser.add_argument("--scenes", type=int, default=8000, help="of which about 0.55 are patterned and train a reader")
    parser.add_argument("--epochs", type=int, default=_EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    disable_progress_bar()
    try:
        pipeline = RealCustomPipeline.from_pretrained(options.backbone, options.adapter)
    except ModelError as error:
        raise SystemExit(str(error)) from error
    if not isinstance(pipeline.adapter, RealCustomPlusAdapter):
        raise SystemExit(f"{options.adapter} is no RealCustom++ adapter: only these have a projector.")
    train = patterned_references("adapter", options.scenes, options.seed)
    test = patterned_references("test", max(options.scenes // 4, 8), options.seed)
    trained, tested = sources(pipeline, train.pictures), sources(pipeline, test.pictures)
    print(f"{len(train.pictures)} references train, {len(test.pictures)} test.\n")
    print(f"| read from | {' | '.join(CLASSES)} |\n|---|---|---|")
    print(_row("nothing: the most frequent answer", [_commonest(tested_on) for tested_on in test.answers.values()]))
    for name in trained:
        shares = [
            reading_accuracy(
                (trained[name], train.answers[question]),
                (tested[name], test.answers[question]),
                classes,
                options.epochs,
            )
            for question, classes in CLASSES.items()
        ]
        print(_row(name, shares), flush=True)
    judged = judge_accuracy(Judge.from_pretrained(WEIGHTS_FOLDER / "judge").eval(), test)
    print(_row("the judge", judged.values()))


def _commonest(answers: Tensor) -> float:
    """Share of the most frequent of the answers (N,)."""
    return float(answers.bincount().max()) / len(answers)


def _row(name: str, shares: Iterable[float]) -> str:
    return f"| {name} | {' | '.join(f'{share:.2f}' for share in shares)} |"


if __name__ == "__main__":
    main()
