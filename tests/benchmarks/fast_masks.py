"""How near the fast masks come to the exact ones, and whether the pictures suffer, on the micro backbone.

    python -m tests.benchmarks.fast_masks runs/micro/stages/train_adapter/*/adapter    # some ten minutes on one core

Unseen objects, each before a ground of its own, are painted with exact masks (k = 1) and with exact ones in every k-th
step only. Printed for each k: the IoU of the masks with the exact ones, mean over the steps that find masks and over
all steps; and how much the independent judge sees pictures differ from those with exact masks in their likeness to the
subject (cosine with another view of it) and in the probability of the ground that the prompt names. Intervals are
95 % bootstraps over objects.

With the adapter of the default profile, `--mask-every 3`, 120 pictures: IoU 0.957 (0.954 to 0.960) over the steps that
find masks, 0.954 (0.949 to 0.958) over all; likeness -0.001 (-0.005 to 0.002) and ground 0.000 of the exact masks'.

What was tried, on earlier weights: the IoU over the 12 steps that find masks, with 56 pictures' guidance maps of the
exact trajectory, and the cost of a picture of 25 steps beside text-to-image, in FLOPs (the visual attention is 0.8 % of
it):

    guided in every 3rd step, extrapolated at half speed (today's)               0.968          + 9.1 %
    the same, held; extrapolated at full speed                                   0.963; 0.966   + 9.1 %
    every 2nd; 4th; 5th step                                                     0.984; 0.946; 0.934
    every 6th and the last, moved as the generation branch's own maps move       0.959          + 8.5 %
    and half a step ahead                                                        0.964          + 8.5 %
    and without the last step                                                    0.960          + 6.6 %
    own maps of two of three self-attention layers; of four of six cross layers  0.950; 0.955
    own maps at every second row and column                                      0.950

Own maps, recorded in nine steps or ten, take more code.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from model.micro_sd.weights import WEIGHTS_FOLDER
from model.microworld.backgrounds import BACKGROUNDS
from model.microworld.captions import plain_caption
from model.microworld.scenes import SceneShares, draw_specs, render_scenes
from model.microworld.shapes import TRAINED_CATEGORIES
from model.pictures import to_tensor
from model.pipeline import RealCustomPipeline
from model.scoring.metrics import Interval, JudgeScorer, bootstrap_interval, mask_iou

_STEPS, _MASK_STEPS = 25, 12
_BATCH = 8


@dataclass(frozen=True)
class Case:
    """One picture to paint."""

    instance: str
    word: str
    ground: str
    reference: Image.Image
    view: Image.Image  # the same object elsewhere

    @property
    def prompt(self) -> str:
        """What is to be painted."""
        return plain_caption(self.word, self.ground)


@dataclass(frozen=True)
class Painted:
    """What became of N cases."""

    masks: Tensor  # (steps, N, G, G'), the masks that each step used
    similarity: Tensor  # (N,)
    ground: Tensor  # (N,), its probability


def draw_cases(count: int, seed: int = 0) -> list[Case]:
    """Objects of the test split, which no model has seen; grounds take turns."""
    shares = SceneShares(two_objects=0.0)
    specs = draw_specs("test", 2 * count, seed, views=2, categories=TRAINED_CATEGORIES, shares=shares)
    pictures = [Image.fromarray(image) for image in render_scenes(specs).image]
    return [
        Case(
            instance=str(specs[2 * number].subject.instance),
            word=specs[2 * number].subject.instance.category,
            ground=BACKGROUNDS[number % len(BACKGROUNDS)],
            reference=pictures[2 * number],
            view=pictures[2 * number + 1],
        )
        for number in range(count)
    ]


def paint(pipeline: RealCustomPipeline, judge: JudgeScorer, cases: Sequence[Case], mask_every: int) -> Painted:
    """Paint all cases, each with its own seed."""
    batches = [
        _paint_batch(pipeline, judge, cases[start : start + _BATCH], mask_every, start)
        for start in range(0, len(cases), _BATCH)
    ]
    return Painted(
        masks=torch.cat([batch.masks for batch in batches], 1),
        similarity=torch.cat([batch.similarity for batch in batches]),
        ground=torch.cat([batch.ground for batch in batches]),
    )


def _paint_batch(
    pipeline: RealCustomPipeline, judge: JudgeScorer, cases: Sequence[Case], mask_every: int, seed: int
) -> Painted:
    masks: list[Tensor] = []

    def keep(_: RealCustomPipeline, step: int, timestep: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        masks.append(state["masks"][:, 0])
        return {}

    output = pipeline(
        [case.prompt for case in cases],
        [case.reference for case in cases],
        [case.word for case in cases],
        steps=_STEPS,
        mask_steps=_MASK_STEPS,
        mask_every=mask_every,
        seeds=seed,
        callback_on_step_end=keep,
    )
    pictures, views = to_tensor(output.images), to_tensor([case.view for case in cases])
    return Painted(
        masks=torch.stack(masks),
        similarity=(judge.embed_subjects(pictures) * judge.embed_subjects(views)).sum(-1),
        ground=judge.ground_probability(pictures, [case.ground for case in cases]),
    )


def compare(exact: Painted, fast: Painted, instances: Sequence[str]) -> dict[str, Interval]:
    """The columns of the table, a mean over the cases each."""
    pairs = zip(fast.masks, exact.masks, strict=True)
    iou = torch.stack([mask_iou(masks, truth > 0) for masks, truth in pairs])  # (steps, N)
    columns = {
        "IoU, steps with new masks": iou[:_MASK_STEPS].mean(0),
        "IoU, all steps": iou.mean(0),
        "similarity gained": fast.similarity - exact.similarity,
        "ground gained": fast.ground - exact.ground,
    }
    return {name: bootstrap_interval(values.numpy(), instances) for name, values in columns.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Masks and pictures of the fast mode beside the exact ones.")
    parser.add_argument("adapter", type=Path, help="trained on the shipped micro backbone")
    parser.add_argument("--mask-every", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--count", type=int, default=120, help="pictures to paint for each")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pipeline = RealCustomPipeline.from_pretrained(WEIGHTS_FOLDER, given.adapter)
    judge = JudgeScorer.from_pretrained(WEIGHTS_FOLDER / "judge")
    cases = draw_cases(given.count)
    instances = [case.instance for case in cases]
    exact = paint(pipeline, judge, cases, 1)
    for every in given.mask_every:
        fast = compare(exact, paint(pipeline, judge, cases, every), instances)
        told = (f"{name} {one.mean:.3f} ({one.low:.3f} to {one.high:.3f})" for name, one in fast.items())
        print(f"k = {every}: " + "; ".join(told), flush=True)


if __name__ == "__main__":
    main()
