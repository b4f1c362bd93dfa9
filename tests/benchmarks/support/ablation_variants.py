"""The variants of `adapter_ablations`: a standard training of the adapter, and what each of the others changes.

Legend of shapes: B examples, M noises for each, h, w latent grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from model.adapters.projector import Combination
from model.training.curriculum import Recipe
from tests.benchmarks.support.rendered_world import WorldSize

#: Far more pictures than a training of the standard length uses.
MANY_OBJECTS = WorldSize(scenes=20_000, objects=3_000, views=4)
#: About as many as the default run has.
FEW_OBJECTS = WorldSize(scenes=2_400, objects=240, views=8)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A training of the adapter. The defaults are the standard one.

    Attributes:
        name: On the command line.
        change: What differs from the standard training, in words.
        world: The pictures that the examples are drawn from.
        steps: Of the optimizer.
        batch_size: Examples of a step.
        optimizer: See `TrainerConfig`.
        learning_rate: Its maximum.
        noises: M, see `AdapterTask.noises_per_example`.
        max_crop_ratio: r_max of `Recipe`.
        multiview: A constant share of view pairs; None: grows from 0 to 1.
        timestep_power: The density of the timesteps grows as t^(power - 1).
        outside_weight: Weight of the loss outside the subject, above 0, relative to that on it.
        cross_scale: Of the projector, see `CrossLayerCrossScaleProjector`; None: without the high-resolution tiles.
        drops_references: Whether the default's share of the examples loses its reference.
    """

    name: str
    change: str
    world: WorldSize = MANY_OBJECTS
    steps: int = 700
    batch_size: int = 32
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1.5e-3
    noises: int = 1
    max_crop_ratio: float = math.sqrt(10)
    multiview: float | None = None
    timestep_power: float = 1.0
    outside_weight: float = 1.0
    cross_scale: Combination | None = "add"
    drops_references: bool = True

    def recipe(self, examples_scale: float) -> Recipe:
        """The recipe of the training plan, with `examples_scale` times the steps."""
        return Recipe(
            steps=max(1, round(self.steps * examples_scale)),
            batch_size=self.batch_size,
            r_min=1.0,
            r_max=self.max_crop_ratio,
            multiview=self.multiview,
        )

    def adjust(self, batch: dict[str, Tensor], masks: Tensor, length: int) -> dict[str, Tensor]:
        """Change the timesteps of a batch of `AdapterTask`, and add the weights of the loss.

        Args:
            batch: With latents (B * M, 4, h, w) and timesteps (B * M,).
            masks: Of the subjects in the targets (B, H, W), in [0, 1].
            length: Steps of the noise schedule.

        Returns:
            The batch with other timesteps, and weights (B * M, 1, h, w).
        """
        height, width = batch["latents"].shape[-2:]
        weights = subject_weights(masks, (height, width), self.outside_weight)
        return batch | {
            "timesteps": biased_timesteps(batch["timesteps"], self.timestep_power, length),
            "weights": weights.repeat_interleave(self.noises, dim=0),
        }


def changed_training(name: str) -> Variant:
    """The training that a variant changes; itself, if it changes none."""
    return DEFAULT_RUN if VARIANTS[name] in (DEFAULT_RUN, *CHANGES_OF_DEFAULT_RUN) else STANDARD


def biased_timesteps(timesteps: Tensor, power: float, length: int) -> Tensor:
    """Uniform timesteps (B,) in [0, length) -> timesteps with a density that grows as t^(power - 1)."""
    quantile = (timesteps + 0.5) / length
    return (length * quantile ** (1 / power)).long().clamp(max=length - 1)


def subject_weights(masks: Tensor, grid: tuple[int, int], outside: float) -> Tensor:
    """Masks (B, H, W) -> weights (B, 1, h, w), in the ratio of 1 on the subject to `outside`, with a mean of 1 each."""
    cover = F.adaptive_avg_pool2d(masks[:, None], grid)
    weights = outside + (1 - outside) * cover
    return weights / weights.mean((1, 2, 3), keepdim=True)


STANDARD = Variant(name="standard", change="none: the standard training")
#: The number of examples alone; longer trainings have larger batches and a higher learning rate.
LENGTHS = (
    Variant(name="examples_x0.25", change="a quarter of the examples", steps=175),
    Variant(name="examples_x10", change="ten times the examples", steps=1_750, batch_size=128, learning_rate=2.5e-3),
)
SINGLE_CHANGES = (
    Variant(name="few_objects", change="as few scenes and objects as the default run has", world=FEW_OBJECTS),
    Variant(name="four_noises", change="four noises for each example", noises=4),
    Variant(name="crops_1.5", change="crops of the reference down to 1 / 1.5 of its side", max_crop_ratio=1.5),
    Variant(name="no_crops", change="no crops of the reference", max_crop_ratio=1.0),
    Variant(name="half_view_pairs", change="half of the examples are view pairs", multiview=0.5),
    Variant(name="no_view_pairs", change="no view pairs", multiview=0.0),
    Variant(name="noisy_timesteps", change="timesteps with a density that grows as t", timestep_power=2.0),
    Variant(name="subject_loss", change="loss outside the subject weighted by 0.1", outside_weight=0.1),
    Variant(name="learning_rate_4e-3", change="learning rate 4e-3 instead of 1.5e-3", learning_rate=4e-3),
    Variant(
        name="noises_timesteps_loss",
        change="four noises, noisy timesteps and weighted loss together",
        noises=4,
        timestep_power=2.0,
        outside_weight=0.1,
    ),
)
#: The default run's training, and single changes of it.
DEFAULT_RUN = Variant(
    name="default_run",
    change="none: the default run's training",
    world=FEW_OBJECTS,
    steps=440,
    batch_size=8,
    optimizer="muon",
    learning_rate=1e-2,
    noises=8,
    max_crop_ratio=1.5,
)
CHANGES_OF_DEFAULT_RUN = (
    replace(DEFAULT_RUN, name="no_tiles", change="no high-resolution tiles of the reference", cross_scale=None),
    replace(DEFAULT_RUN, name="no_dropping", change="no example loses its reference", drops_references=False),
    replace(
        DEFAULT_RUN, name="default_subject_loss", change="loss outside the subject weighted by 0.1", outside_weight=0.1
    ),
)
#: Another optimizer, which has another learning rate; beside "four_noises".
MUON = Variant(
    name="muon_four_noises",
    change="four noises, and Muon (learning rate 1e-2) instead of AdamW",
    noises=4,
    optimizer="muon",
    learning_rate=1e-2,
)
VARIANTS = {
    variant.name: variant
    for variant in (STANDARD, *LENGTHS, *SINGLE_CHANGES, MUON, DEFAULT_RUN, *CHANGES_OF_DEFAULT_RUN)
}
