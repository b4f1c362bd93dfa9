"""How much a learned concept takes over its prompt's context: sim_1, sim_2 and SKL (Contextualizer, Table 1).

    python -m tests.benchmarks.context_overfitting --concepts runs/concepts
    python -m tests.benchmarks.context_overfitting --concepts runs/concepts --prompts 20

Hardware and time: a core; some seconds for each concept. `--concepts` is the output of
`tests.benchmarks.customization_methods`, from which the concepts of Textual Inversion with and without the MLM loss are
read.

For each subject, prompts that no training saw ("a photo of a [v] mug on the beach") are encoded with the concept and
without it. Context tokens are the words for the place. Cross-attention maps are those of the 16 x 16 layers while the
scene of the prompt is half noise (t = 500). All prompts of a subject give one mean; intervals are over subjects.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from model.backbone import Backbone, load_backbone
from model.concepts.context_overfitting import concept_similarity, context_similarity, symmetric_divergence
from model.concepts.folder import read_concept
from model.concepts.loading import load_concept, unload_concepts
from model.micro_sd.weights import WEIGHTS_FOLDER
from model.microworld.captions import BACKGROUND_PHRASES
from model.scoring.metrics import Interval, bootstrap_interval
from model.seeding import generator_of
from tests.benchmarks.support.attention_maps import record_attention, use_default_attention
from tests.benchmarks.support.command_line import benchmark_parser

MEASURES = ("sim_1", "sim_2", "SKL")
_TEMPLATES = ("a photo of a {} {}", "a picture of a {} {}", "there is a {} {}", "a close view of a {} {}", "a {} {}")
#: Words of the places' phrases that say nothing of a place.
_FUNCTION_WORDS = {"a", "at", "by", "front", "in", "of", "on", "the", "under", "among"}
_TIMESTEP = 500
_RESOLUTION = 16


@dataclass(frozen=True)
class Encoded:
    """Prompts as the UNet reads them: states (B, n, c), ids (B, n)."""

    ids: Tensor
    states: Tensor


def prompts_of(count: int) -> list[str]:
    """The prompts of a subject, {} for its name: all templates with all phrases for places, at most `count`."""
    phrases = [phrase for listed in BACKGROUND_PHRASES.values() for phrase in listed]
    return [template.format("{}", phrase) for phrase in phrases for template in _TEMPLATES][:count]


def context_words() -> set[str]:
    """The words for places."""
    words = {word for listed in BACKGROUND_PHRASES.values() for phrase in listed for word in phrase.split()}
    return words - _FUNCTION_WORDS


def encode(backbone: Backbone, prompts: Sequence[str]) -> Encoded:
    """The ids and states of prompts."""
    (ids,) = backbone.token_ids(list(prompts))
    return Encoded(ids, backbone.encode_prompt(list(prompts)).hidden)


def context_of(backbone: Backbone, ids: Tensor) -> Tensor:
    """(B, n) bool: the tokens of words for places."""
    known = backbone.tokenizers[0].convert_tokens_to_ids(sorted(context_words()))
    return torch.isin(ids, torch.tensor(known))


def cross_attention(backbone: Backbone, encoded: Encoded, seed: int) -> Tensor:
    """The mean maps (B, q, n) of the 16 x 16 layers for half-noise latents."""
    side = backbone.unet.config.sample_size
    noise = [torch.randn(4, side, side, generator=generator_of(seed, row)) for row in range(len(encoded.states))]
    record = record_attention(backbone.unet)
    try:
        backbone.unet(torch.stack(noise), _TIMESTEP, encoded.states)
    finally:
        use_default_attention(backbone.unet)
    return torch.stack([layer for layer in record.cross.values() if layer.shape[1] == _RESOLUTION**2]).mean(0)


@torch.no_grad()
def measure(backbone: Backbone, folder: Path, prompts: Sequence[str], seed: int = 0) -> dict[str, float]:
    """The means of all measures over the prompts of a concept."""
    (token,) = read_concept(folder).tokens
    plain = encode(backbone, [prompt.format(token.word) for prompt in prompts])
    load_concept(backbone, folder)
    try:
        named = encode(backbone, [prompt.format(f"{token.placeholder} {token.word}") for prompt in prompts])
        vectors = backbone.tokenizers[0](token.placeholder, add_special_tokens=False).input_ids
        position = (named.ids == vectors[0]).int().argmax(1)
        context = context_of(backbone, named.ids)
        maps = cross_attention(backbone, named, seed)
    finally:
        unload_concepts(backbone)
    shift = len(vectors)  # the words after the concept stand that much further to the left without it
    aligned = plain.states.roll(shift, 1)
    return {
        "sim_1": float(concept_similarity(named.states, position, context).mean()),
        "sim_2": float(context_similarity(named.states, aligned, context).mean()),
        "SKL": float(symmetric_divergence(maps, position, context).mean()),
    }


def concepts_of(folder: Path) -> dict[str, dict[str, Path]]:
    """Arm -> subject -> the concept at the end of its training, of Textual Inversion."""
    arms = sorted(arm for arm in (folder / "concepts").glob("textual_inversion*") if arm.is_dir())
    return {
        arm.name: {subject.name: max(subject.glob("step-*")) for subject in sorted(arm.iterdir()) if subject.is_dir()}
        for arm in arms
    }


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """A line for each arm: means over subjects with intervals."""
    lines = ["| arm | " + " | ".join(MEASURES) + " |", "|---|---|---|---|"]
    for arm, subjects in results.items():
        intervals = (_over_subjects(subjects, name) for name in MEASURES)
        lines.append(
            f"| {arm} | " + " | ".join(f"{i.mean:.3f} ({i.low:.3f} to {i.high:.3f})" for i in intervals) + " |"
        )
    return "\n".join(lines)


def _over_subjects(subjects: dict[str, dict[str, float]], name: str) -> Interval:
    return bootstrap_interval([values[name] for values in subjects.values()], list(subjects))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--concepts", type=Path, required=True, help="the output of customization_methods")
    parser.add_argument("--prompts", type=int, default=100, help="of each subject")
    options: argparse.Namespace = parser.parse_args(arguments)
    disable_progress_bar()
    backbone, prompts = load_backbone(str(WEIGHTS_FOLDER)), prompts_of(options.prompts)
    results = {
        arm: {subject: measure(backbone, folder, prompts) for subject, folder in subjects.items()}
        for arm, subjects in concepts_of(options.concepts).items()
    }
    print(table(results))


if __name__ == "__main__":
    main()
