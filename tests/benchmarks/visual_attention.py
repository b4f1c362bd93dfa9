"""Whether an adapter's visual attention distinguishes the places of a reference.

    python -m tests.benchmarks.visual_attention
    python -m tests.benchmarks.visual_attention --adapters runs/micro/stages/train_adapter/*/adapter

Hardware and time: one core; half a minute an adapter. The adapters must be trained on the shipped micro backbone.

References are patterned objects that no training shows. The picture is the same object in another place, noised as at
five timesteps of the schedule, with its caption. For each cross-attention layer and head, at the picture's places on
the object, the benchmark takes the attention p(token | place) over the n tokens of the reference:

    entropy      the mean over the places of H(p(. | place)) / log n: 1 is attention that sees no token in particular
    information  I(place; token) = H(mean over places of p) - mean over places of H(p), in nats: 0 is a palette, the
                 same mixture of tokens at each place; the most that is possible is log of the smaller number

and prints their means over heads, references and timesteps.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from model.micro_sd.architectures import IMAGE_SIZE
from model.micro_sd.shipped_adapter import ADAPTER_FOLDER
from model.micro_sd.weights import WEIGHTS_FOLDER
from model.microworld.instances import PATTERNS, make_instance
from model.microworld.scenes import SceneShares, draw_specs, render_scenes
from model.pipeline import RealCustomPipeline
from model.training.encodings import encode_targets
from tests.benchmarks.support.command_line import benchmark_parser

TIMESTEPS = (900, 700, 500, 300, 100)


@dataclass(frozen=True, kw_only=True)
class Views:
    """An object twice: the reference (3, S, S); the picture (3, S, S) with caption and mask (S, S). In [0, 1]."""

    caption: str
    reference: Tensor
    picture: Tensor
    mask: Tensor


@dataclass
class KeptQueries:
    """The queries of the last pass by layer, (B, H, N, d)."""

    queries: dict[str, Tensor] = field(default_factory=dict)

    def wants(self, layer: str) -> bool:
        """Cross-attention."""
        return layer.endswith("attn2")

    def record(self, layer: str, query: Tensor, key: Tensor) -> None:
        """See `AttentionRecorder`."""
        self.queries[layer] = query


def entropy_and_information(attention: Tensor) -> tuple[float, float]:
    """The two measures of attention (H, N, n), means over the H heads."""
    entropy = _entropy(attention).mean(-1)  # (H,)
    information = _entropy(attention.mean(-2)) - entropy
    return float(entropy.mean()) / math.log(attention.shape[-1]), float(information.mean())


def _entropy(probability: Tensor) -> Tensor:
    return -torch.special.xlogy(probability, probability).sum(-1)


def patterned_views(count: int, seed: int) -> list[Views]:
    """Objects of the split `test` that have a pattern."""
    specs = draw_specs("test", 16 * count, seed, views=2, shares=SceneShares(two_objects=0.0))
    solid = PATTERNS.index("solid")
    chosen = [n for n in range(0, len(specs), 2) if make_instance(specs[n].subject.instance).pattern != solid][:count]
    scenes = render_scenes([specs[n + view] for n in chosen for view in (0, 1)], IMAGE_SIZE)
    pictures = torch.from_numpy(scenes.image).permute(0, 3, 1, 2).float() / 255
    masks = torch.from_numpy(scenes.mask).float() / 255
    captions = [specs[n + 1].caption.text for n in chosen]
    return [
        Views(caption=caption, reference=pictures[2 * n], picture=pictures[2 * n + 1], mask=masks[2 * n + 1])
        for n, caption in enumerate(captions)
    ]


@torch.no_grad()
def measure(pipeline: RealCustomPipeline, views: Sequence[Views], seed: int) -> dict[str, tuple[float, float]]:
    """Layer -> entropy and information."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for view in views:
        for layer, attention in visual_attention(pipeline, view, seed).items():
            side = math.isqrt(attention.shape[-2])
            places = F.adaptive_avg_pool2d(view.mask[None, None], side).flatten() > 0.5
            if places.any():
                found[layer] += [entropy_and_information(of_one[:, places]) for of_one in attention]
    return {layer: _means(pairs) for layer, pairs in found.items()}


def _means(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    entropy, information = zip(*pairs, strict=True)
    return sum(entropy) / len(pairs), sum(information) / len(pairs)


def visual_attention(pipeline: RealCustomPipeline, view: Views, seed: int) -> dict[str, Tensor]:
    """Layer -> attention (timesteps, H, N, n) of the noised picture over the reference's tokens."""
    backbone = pipeline.backbone
    assert pipeline.adapter is not None
    assert pipeline.image_encoders is not None
    condition = pipeline.adapter(pipeline.image_encoders.features(view.reference[None]))
    latents = encode_targets(backbone, view.picture[None]).expand(len(TIMESTEPS), -1, -1, -1)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    timesteps = torch.tensor(TIMESTEPS)
    recorder = KeptQueries()
    backbone.predict(
        backbone.scheduler.add_noise(latents, noise, timesteps),
        timesteps,
        backbone.encode_prompt([view.caption] * len(TIMESTEPS)),
        visual=condition.repeat_interleave(len(TIMESTEPS)),
        recorder=recorder,
    )
    return {layer: _probabilities(query, condition.keys_values[layer][0]) for layer, query in recorder.queries.items()}


def _probabilities(query: Tensor, key: Tensor) -> Tensor:
    """Queries (B, H, N, d), keys (1, n, H * d) -> attention (B, H, N, n)."""
    heads = key.unflatten(-1, (query.shape[1], -1)).transpose(1, 2)
    return (query @ heads.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each adapter."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--adapters", type=Path, nargs="+", default=[ADAPTER_FOLDER], metavar="FOLDER")
    parser.add_argument("--subjects", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    disable_progress_bar()
    views = patterned_views(options.subjects, options.seed)
    for adapter in options.adapters:
        pipeline = RealCustomPipeline.from_pretrained(WEIGHTS_FOLDER, adapter)
        print(f"{adapter}\n\n| layer | entropy | information, nats |\n|---|---|---|")
        for layer, (entropy, information) in measure(pipeline, views, options.seed).items():
            print(f"| {layer.partition('.transformer')[0]} | {entropy:.2f} | {information:.2f} |")


if __name__ == "__main__":
    main()
