"""Looks at what an adapter paints while it trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.pictures.decoding import load_picture
from model.pipeline import RealCustomPipeline
from model.training.adapter_examples import Method
from model.training.adapter_loss import AdapterModule
from model.training.adapter_previews import Sample
from model.training.adapter_task import AdapterTask
from model.training.task import SamplingTask
from tests.support.adapter_tasks import make_task, randomise_values
from tests.support.tiny_examples import picture
from tests.support.tiny_models import ENCODERS
from tests.support.training_tasks import LinearTask

REFERENCES = [picture("wide"), picture("b")]
SAMPLES = [
    Sample(reference=reference, word="cat", prompt=f"a cat in {name}")
    for reference, name in zip(REFERENCES, ("wide", "b"), strict=True)
]
methods = pytest.mark.parametrize("method", ["realcustom++", "realcustom"])


def in_training(
    folder: Path, method: Method = "realcustom++", half: torch.dtype | None = None
) -> tuple[AdapterTask, AdapterModule]:
    task = make_task(folder, method=method, half=half, samples=SAMPLES, sample_every=10)
    module = task.module().train()
    torch.manual_seed(3)
    with torch.no_grad():
        randomise_values(module)
    return task, module


@methods
def test_a_look_shows_what_the_saved_adapter_paints(method: Method, sd_folder: Path, tmp_path: Path) -> None:
    task, module = in_training(sd_folder, method)
    assert isinstance(task, SamplingTask)
    task.sample(module, 40, tmp_path)
    with Image.open(tmp_path / "0000040.png") as look:
        painted = look.convert("RGB")
    assert painted.size == (32, 64)
    task.export(module, tmp_path / "adapter")
    pipeline = RealCustomPipeline.from_pretrained(sd_folder, tmp_path / "adapter", **ENCODERS)
    expected = pipeline(
        ["a cat in wide", "a cat in b"], list(map(load_picture, REFERENCES)), "cat", seeds=[0, 1]
    ).images
    for number, one in enumerate(expected):
        assert painted.crop((0, 32 * number, 32, 32 * number + 32)).tobytes() == one.tobytes()


@methods
def test_training_does_not_notice_a_look(method: Method, sd_folder: Path, tmp_path: Path) -> None:
    task, module = in_training(sd_folder, method)
    unet, batch = module.frozen.backbone.unet, task.batch(0, 0, 1)
    expected = module(batch)
    expected["loss"].backward()
    gradients = [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]
    state, processors = torch.get_rng_state(), dict(unet.attn_processors)
    task.sample(module, 10, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(unet.attn_processors[name] is processor for name, processor in processors.items())
    assert module.training
    assert all(part.training for part in module.modules())
    assert not unet.training
    found = module(batch)
    assert {name: value.item() for name, value in found.items()} == {n: v.item() for n, v in expected.items()}
    module.zero_grad()
    found["loss"].backward()
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)


def test_looks_in_half_precision(sd_folder: Path, tmp_path: Path) -> None:
    task, module = in_training(sd_folder, half=torch.bfloat16)
    task.sample(module, 1, tmp_path)
    with Image.open(tmp_path / "0000001.png") as look:
        assert np.asarray(look.convert("RGB"), dtype=np.float32).std() > 10  # a picture, neither black nor empty


def test_a_look_that_fails_is_left_out(sd_folder: Path, tmp_path: Path) -> None:
    task, module = in_training(sd_folder)
    with torch.no_grad():
        for linear in module.adapter.to_v_vision.values():
            assert isinstance(linear, torch.nn.Linear)
            linear.weight.fill_(torch.nan)
    with pytest.warns(UserWarning, match=r"^no sample pictures of step 7: the latents became NaN or infinite"):
        task.sample(module, 7, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert module.adapter.training


def test_a_task_without_looks_is_told_apart() -> None:
    assert not isinstance(LinearTask(), SamplingTask)
