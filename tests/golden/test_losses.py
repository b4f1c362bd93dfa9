"""The first 50 losses of the adapter's training on the shipped micro backbone, compared with golden ones.

    python -m tests.golden.test_losses

replaces the golden losses after a change that is meant to change them (new weights, another loss); inspect the
difference then.

The loop runs in one process with the settings of the profile micro, but with AdamW: Muon rounds its updates to bf16,
which differs more between processors. It covers everything from plan and pictures to the weights: the loss of a step
agrees only if all steps before it do.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from model.methods.names import MethodName
from model.micro_sd.weights import WEIGHTS_FOLDER
from model.microworld.scenes import SceneShares, draw_specs, render_scenes
from model.pictures.decoding import to_png
from model.training.adapter_examples import PlanRow
from model.training.adapter_task import AdapterTask
from model.training.curriculum import Recipe, draw_step
from model.training.target_sizes import Phase
from stages.config import Config
from stages.inference import loading_options

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent / "adapter_losses.json"
METHODS: tuple[MethodName, ...] = ("realcustom++", "realcustom")
STEPS, BATCH, OBJECTS = 50, 4, 12
CROPS = ("crop_x", "crop_y", "target_crop_x", "target_crop_y")
LEARNING_RATE = 1.5e-3
#: Rounding differs between processors and numbers of threads, and training accumulates it: initial weights that differ
#: by a millionth change these losses by 2.3e-5 at most.
TOLERANCE = 1e-3


@functools.cache
def scenes() -> list[tuple[bytes, str, str]]:
    """Picture, caption and category of two scenes of each object."""
    specs = draw_specs("adapter", 2 * OBJECTS, seed=3, views=2, shares=SceneShares(two_objects=0.0))
    return [
        (to_png(Image.fromarray(picture)), spec.caption.text, spec.subject.instance.category)
        for spec, picture in zip(specs, render_scenes(specs).image, strict=True)
    ]


def rows(step: int) -> Sequence[PlanRow]:
    """RealCustom++'s curriculum over these steps; a pair of views is two scenes of an object."""
    recipe = Recipe(steps=STEPS, batch_size=BATCH, r_min=1.0, r_max=10**0.5)
    draws = draw_step(recipe, step, seed=0)
    side = Config().backbone.resolution
    found = []
    for slot in range(BATCH):
        own = 2 * int(draws.choice[slot] * OBJECTS)
        _, caption, category = scenes()[own]
        pair = bool(draws.source[slot] < recipe.multiview_share(step))
        found.append(
            PlanRow(
                slot=slot,
                source="multiview" if pair else "image_text",
                reference_id=str(own),
                target_id=str(own + pair),
                caption=f"a photo of a {category}" if pair else caption,
                crop_ratio=float(draws.crop_ratio[slot]),
                **dict(zip(CROPS, draws.crop_position[slot].tolist(), strict=True)),
                **dict.fromkeys(("height", "width", "original_height", "original_width"), side),
            )
        )
    return found


def train(method: MethodName) -> list[float]:
    """The loss of every step."""
    config = Config()
    settings, trainer = config.train_adapter, config.train_adapter.trainer
    task = AdapterTask(
        backbone=str(WEIGHTS_FOLDER),
        encoders=loading_options(config.backbone),
        rows=rows,
        picture=lambda picture_id: scenes()[int(picture_id)][0],
        phases=(Phase(0, config.backbone.resolution),),
        drop_text=settings.drop_text,
        drop_image=settings.drop_image,
        drop_both=settings.drop_both,
        seed=0,
        method=method,
    )
    torch.manual_seed(0)
    module = task.module()
    betas, decay = (0.9, trainer.beta2), trainer.weight_decay
    optimizer = torch.optim.AdamW(module.parameters(), betas=betas, weight_decay=decay)
    losses = []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (step + 1) / trainer.warmup_steps)
        loss = module(task.batch(step, 0, 1))["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), trainer.gradient_clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("method", METHODS)
def test_the_losses_are_the_golden_ones(method: MethodName) -> None:
    golden = json.loads(GOLDEN.read_text())[method]
    assert train(method) == pytest.approx(golden, rel=TOLERANCE), "see the top of this file"


if __name__ == "__main__":
    curves = {method: [round(loss, 6) for loss in train(method)] for method in METHODS}
    GOLDEN.write_text(json.dumps(curves, indent=1) + "\n")
