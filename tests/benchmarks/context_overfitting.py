"""How much a learned concept takes over its prompt's context: sim_1, sim_2 and SKL (Contextualizer, Table 1).

    python -m tests.benchmarks.context_overfitting --concepts runs/concepts
    python -m tests.benchmarks.context_overfitting --concepts runs/concepts --prompts 100

Hardware and time: a core; two minutes. `--concepts` is the output of `tests.benchmarks.customization_methods`, from
which the concepts of Textual Inversion with and without the MLM loss are read.

For each subject, prompts that no training saw ("a photo of a [v] mug on the beach") are encoded with the concept and
without it. Context tokens are the words for the place. Cross-attention maps are those of the 16 x 16 layers on a
picture that the class word paints from the same prompt, half noise (t = 500), the same in all arms. All prompts of a
subject give one mean; intervals are over subjects, and those of a difference from no MLM loss are paired.
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
from model.guidance.settings import InferenceSettings
from model.micro_sd.weights import WEIGHTS_FOLDER
from model.microworld.captions import BACKGROUND_PHRASES
from model.pictures.tensors import to_tensor
from model.pipeline import RealCustomPipeline
from model.scoring.metrics import bootstrap_interval
from model.seeding import generator_of
from tests.benchmarks.support.attention_maps import record_attention, use_default_attention
from tests.benchmarks.support.command_line import benchmark_parser

MEASURES = ("sim_1", "sim_2", "SKL")
_TEMPLATES = ("a photo of a {} {}", "a picture of a {} {}", "there is a {} {}", "a close view of a {} {}", "a {} {}")
#: Words of the places' phrases that say nothing of a place.
_FUNCTION_WORDS = {"a", "at", "by", "front", "in", "of", "on", "the", "under", "among"}
_TIMESTEP = 500
_PAINTING_STEPS = 10
_RESOLUTION = 16


@dataclass(frozen=True)
class Encoded:
    """Prompts as the UNet reads them: states (B, n, c), ids (B, n)."""

    ids: Tensor
    states: Tensor


def prompts_of(count: int) -> list[str]:
    """The prompts of a subject, {} for its name: all phrases for places with each template, at most `count`."""
    phrases = [phrase for listed in BACKGROUND_PHRASES.values() for phrase in listed]
    return [template.format("{}", phrase) for template in _TEMPLATES for phrase in phrases][:count]


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


@torch.no_grad()
def half_noise(backbone: Backbone, prompts: Sequence[str], seed: int = 0) -> Tensor:
    """Noisy latents (B, 4, h, w) of pictures that the backbone paints from prompts."""
    settings = InferenceSettings(steps=_PAINTING_STEPS, mask_steps=None)
    pictures = RealCustomPipeline(backbone)(prompts, settings=settings, seeds=seed).images
    latents = backbone.encode_pictures(to_tensor(pictures) * 2 - 1)
    noise = torch.stack(
        [torch.randn(latents.shape[1:], generator=generator_of(seed, row)) for row in range(len(latents))]
    )
    return backbone.scheduler.add_noise(latents, noise, torch.full((len(latents),), _TIMESTEP))


def cross_attention(backbone: Backbone, encoded: Encoded, noisy: Tensor) -> Tensor:
    """The mean maps (B, q, n) of the 16 x 16 layers for noisy latents (B, 4, h, w)."""
    record = record_attention(backbone.unet)
    try:
        backbone.unet(noisy, _TIMESTEP, encoded.states)
    finally:
        use_default_attention(backbone.unet)
    return torch.stack([layer for layer in record.cross.values() if layer.shape[1] == _RESOLUTION**2]).mean(0)


@torch.no_grad()
def measure(backbone: Backbone, folder: Path, prompts: Sequence[str], noisy: Tensor) -> dict[str, float]:
    """The means of all measures over the prompts of a concept; `noisy` (B, 4, h, w) shows what they say."""
    (token,) = read_concept(folder).tokens
    plain = encode(backbone, [prompt.format(token.word) for prompt in prompts])
    load_concept(backbone, folder)
    try:
        named = encode(backbone, [prompt.format(f"{token.placeholder} {token.word}") for prompt in prompts])
        vectors = backbone.tokenizers[0](token.placeholder, add_special_tokens=False).input_ids
        position = (named.ids == vectors[0]).int().argmax(1)
        context = context_of(backbone, named.ids)
        maps = cross_attention(backbone, named, noisy)
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
    """A line for each arm: means over subjects with intervals, and the paired differences from the first arm."""
    head = ["arm", *MEASURES, *(f"{name}, difference" for name in MEASURES)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    plain = next(iter(results.values()))
    for arm, subjects in results.items():
        cells = [_shown([own[name] for own in subjects.values()], list(subjects)) for name in MEASURES]
        for name in MEASURES:
            paired = [own[name] - plain[subject][name] for subject, own in subjects.items()]
            cells.append("" if subjects is plain else _shown(paired, list(subjects), "+"))
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(values: Sequence[float], subjects: Sequence[str], sign: str = "") -> str:
    return f"{bootstrap_interval(values, subjects):{sign}.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--concepts", type=Path, required=True, help="the output of customization_methods")
    parser.add_argument("--prompts", type=int, default=20, help="of each subject, at most 100")
    options: argparse.Namespace = parser.parse_args(arguments)
    disable_progress_bar()
    backbone, prompts = load_backbone(str(WEIGHTS_FOLDER)), prompts_of(options.prompts)
    results: dict[str, dict[str, dict[str, float]]] = {}
    noisy: dict[str, Tensor] = {}
    for arm, subjects in concepts_of(options.concepts).items():
        for subject, folder in subjects.items():
            if subject not in noisy:
                (token,) = read_concept(folder).tokens
                noisy[subject] = half_noise(backbone, [prompt.format(token.word) for prompt in prompts])
            results.setdefault(arm, {})[subject] = measure(backbone, folder, prompts, noisy[subject])
    print(table(results))


if __name__ == "__main__":
    main()
