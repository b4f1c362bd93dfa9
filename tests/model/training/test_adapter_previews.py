"""The preview pictures of an adapter in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.errors import GenerationError
from model.guidance.settings import InferenceSettings
from model.methods.names import MethodName
from model.pictures.decoding import load_picture
from model.pipeline import RealCustomPipeline
from model.training.adapter_loss import AdapterModule
from model.training.adapter_previews import PreviewSubject
from model.training.adapter_task import AdapterTask
from model.training.task import SamplingTask
from tests.support.adapter_tasks import make_task, randomize_values
from tests.support.tiny_examples import picture
from tests.support.tiny_models import ENCODERS
from tests.support.training_tasks import LinearTask

REFERENCES = [picture("wide"), picture("b")]
SETTINGS = InferenceSettings(steps=4, guidance_scale=3.0, mask_steps=2)
SUBJECTS = [
    PreviewSubject(reference=reference, word="cat", prompt=f"a cat in {name}")
    for reference, name in zip(REFERENCES, ("wide", "b"), strict=True)
]
methods = pytest.mark.parametrize("method", ["realcustom++", "realcustom"])


def in_training(
    folder: Path, method: MethodName = "realcustom++", half: torch.dtype | None = None
) -> tuple[AdapterTask, AdapterModule]:
    previews = {"preview_subjects": SUBJECTS, "preview_settings": SETTINGS, "sample_every": 10}
    task = make_task(folder, method=method, half=half, **previews)
    module = task.module().train()
    torch.manual_seed(3)
    with torch.no_grad():
        randomize_values(module)
    return task, module


@methods
def test_previews_are_pictures_of_the_saved_adapter(method: MethodName, sd_folder: Path, tmp_path: Path) -> None:
    task, module = in_training(sd_folder, method)
    assert isinstance(task, SamplingTask)
    task.sample(module, 40, tmp_path)
    with Image.open(tmp_path / "0000040.png") as preview:
        painted = preview.convert("RGB")
    assert painted.size == (32, 64)
    task.export(module, tmp_path / "adapter")
    pipeline = RealCustomPipeline.from_pretrained(sd_folder, tmp_path / "adapter", **ENCODERS)
    prompts, references = ["a cat in wide", "a cat in b"], list(map(load_picture, REFERENCES))
    expected = pipeline(prompts, references, "cat", settings=SETTINGS, seeds=[0, 1]).images
    for number, one in enumerate(expected):
        assert painted.crop((0, 32 * number, 32, 32 * number + 32)).tobytes() == one.tobytes()


def test_a_setting_that_the_base_lacks_is_refused_before_the_training(sd_folder: Path) -> None:
    settings = InferenceSettings(mask_cross_downscales=[64])
    task = make_task(sd_folder, preview_subjects=SUBJECTS, preview_settings=settings, sample_every=10)
    with pytest.raises(GenerationError, match=r"mask_cross_downscales \[64\]"):
        task.module()


@methods
def test_previews_do_not_affect_the_training(method: MethodName, sd_folder: Path, tmp_path: Path) -> None:
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


def test_previews_in_half_precision(sd_folder: Path, tmp_path: Path) -> None:
    task, module = in_training(sd_folder, half=torch.bfloat16)
    task.sample(module, 1, tmp_path)
    with Image.open(tmp_path / "0000001.png") as preview:
        assert np.asarray(preview.convert("RGB"), dtype=np.float32).std() > 10  # a picture, neither black nor empty


def test_previews_that_fail_are_left_out(sd_folder: Path, tmp_path: Path) -> None:
    task, module = in_training(sd_folder)
    with torch.no_grad():
        for linear in module.adapter.to_v_vision.values():
            assert isinstance(linear, torch.nn.Linear)
            linear.weight.fill_(torch.nan)
    with pytest.warns(UserWarning, match=r"step 7: the latents became NaN or infinite"):
        task.sample(module, 7, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert module.adapter.training


def test_a_task_without_previews_is_no_sampling_task() -> None:
    assert not isinstance(LinearTask(), SamplingTask)
