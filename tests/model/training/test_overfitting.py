"""Overfitting on one batch.

No adapter on a frozen UNet can predict random noise. So the batch's noise is what the UNet predicts with a teacher's
adapter: the teacher's loss is zero, and a trained adapter must get close to it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.methods.names import MethodName
from model.training.adapter_examples import PlanRow
from model.training.adapter_task import AdapterTask
from tests.support.adapter_tasks import make_task, randomize_values
from tests.support.tiny_examples import rows

pytestmark = pytest.mark.slow

STEPS, SIDE, EXAMPLES = 100, 16, 2


def small_rows(step: int) -> list[PlanRow]:
    return [row._replace(height=SIDE, width=SIDE) for row in rows(step)]


def solvable_batch(task: AdapterTask) -> dict[str, Tensor]:
    """Two examples of a step, with latents and noise such that a teacher predicts the noise exactly."""
    batch = {name: tensor if len(tensor) == 1 else tensor[:EXAMPLES] for name, tensor in task.batch(1, 0, 1).items()}
    torch.manual_seed(5)
    teacher = task.module()
    alpha_bar = teacher.frozen.backbone.scheduler.alphas_cumprod[batch["timesteps"]].view(-1, 1, 1, 1)
    noisy = torch.randn_like(batch["latents"])
    predicted: list[Tensor] = []
    unet = teacher.frozen.backbone.unet
    handle = unet.register_forward_hook(lambda module, given, output: predicted.append(output.sample))
    with torch.no_grad():
        randomize_values(teacher)
        teacher(batch | {"latents": noisy / alpha_bar.sqrt(), "noise": torch.zeros_like(noisy)})  # z_t is `noisy`
        handle.remove()
        batch["noise"] = predicted[0]
        batch["latents"] = (noisy - (1 - alpha_bar).sqrt() * predicted[0]) / alpha_bar.sqrt()
        assert teacher(batch)["loss"].item() < 1e-10
    return batch


@pytest.mark.parametrize("method", ["realcustom++", "realcustom"])
def test_the_loss_of_one_batch_goes_to_zero(method: MethodName, sd_folder: Path) -> None:
    task = make_task(sd_folder, method=method, rows=small_rows, drop_text=0.0, drop_image=0.0, drop_both=0.0)
    batch = solvable_batch(task)
    torch.manual_seed(0)
    module = task.module()
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = module(batch)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.01
    assert losses[-1] < 0.02 * losses[0]
