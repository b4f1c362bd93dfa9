"""Each training problem on a tiny pool: batches are pure functions, the loss falls, and exported models load."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, Dinov2Model

from model.micro_sd.architectures import build_clip, build_vae
from model.micro_sd.clip import ClipTask
from model.micro_sd.data import draw_indices, images_at
from model.micro_sd.dino import DinoTask
from model.micro_sd.judge import Judge, JudgeTask
from model.micro_sd.recipe import PartRecipe, Recipe
from model.micro_sd.unet import UNetModule, UNetTask, encode_pool
from model.micro_sd.vae import VaeModule, VaeTask, fold_whitening
from model.microworld.pool import ScenePool, build_pool
from model.microworld.pool_config import PoolConfig

pytestmark = pytest.mark.slow

Task = VaeTask | ClipTask | DinoTask | JudgeTask | UNetTask
NAMES = ("vae", "clip", "dino", "judge", "unet")


def _small(part: PartRecipe) -> PartRecipe:
    return dataclasses.replace(part, batch=4)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    root, recipe = tmp_path_factory.mktemp("tasks"), Recipe()
    build_pool(root / "train", PoolConfig(count=16), workers=1)
    build_pool(root / "judge", PoolConfig(split="judge", count=16, two_objects=0.5), workers=1)
    torch.manual_seed(0)
    encode_pool(root / "train", build_vae().eval(), build_clip().eval(), root / "cache")
    return {
        "vae": VaeTask(pool_folder=str(root / "train"), recipe=_small(recipe.vae), loss=recipe.vae_loss),
        "clip": ClipTask(pool_folder=str(root / "train"), recipe=_small(recipe.clip)),
        "dino": DinoTask(pool_folder=str(root / "train"), recipe=_small(recipe.dino)),
        "judge": JudgeTask(pool_folder=str(root / "judge"), recipe=_small(recipe.judge)),
        "unet": UNetTask(cache_folder=str(root / "cache"), recipe=_small(recipe.unet), training=recipe.unet_training),
    }


@pytest.mark.parametrize("name", NAMES)
def test_batches_are_pure_functions_of_step_and_rank(tasks: dict[str, Task], name: str) -> None:
    task = tasks[name]
    first, again, other = task.batch(3, 1, 2), pickle.loads(pickle.dumps(task)).batch(3, 1, 2), task.batch(4, 1, 2)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_falls_on_one_batch(tasks: dict[str, Task], name: str) -> None:
    task = tasks[name]
    module = task.module()
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 1e-3)
    batch = task.batch(0, 0, 1)
    losses = []
    for step in range(4):
        output = module(batch)
        assert all(value.ndim == 0 for value in output.values())
        output["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        task.after_step(module, step)
        losses.append(float(output["loss"].detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("vae", AutoencoderKL),
        ("clip", CLIPModel),
        ("dino", Dinov2Model),
        ("judge", Judge),
        ("unet", UNet2DConditionModel),
    ],
)
def test_exports_load(tasks: dict[str, Task], name: str, model: Any, tmp_path: Path) -> None:
    task = tasks[name]
    task.export(task.module(), tmp_path)
    assert (tmp_path / "config.json").is_file()
    assert not list(tmp_path.glob("*.bin"))
    model.from_pretrained(tmp_path)


@torch.no_grad()
def test_whitening_is_exact(tasks: dict[str, Task]) -> None:
    task = tasks["vae"]
    assert isinstance(task, VaeTask)
    module = task.module()
    assert isinstance(module, VaeModule)
    vae = module.vae.eval()
    pool = ScenePool.open(Path(task.pool_folder))
    images = images_at(pool, np.arange(16))
    before = vae.decode(vae.encode(images).latent_dist.mode()).sample
    fold_whitening(vae, images)
    latent = vae.encode(images).latent_dist.mode()
    assert torch.allclose(latent.mean((0, 2, 3)), torch.zeros(4), atol=1e-3)
    assert torch.allclose(latent.std((0, 2, 3)), torch.ones(4), atol=1e-3)
    assert torch.allclose(vae.decode(latent).sample, before, atol=1e-3)


def test_the_average_follows_the_weights(tasks: dict[str, Task]) -> None:
    task = tasks["unet"]
    module = task.module()
    assert isinstance(module, UNetModule)
    with torch.no_grad():
        for parameter in module.unet.parameters():
            parameter.add_(1.0)
    before = next(module.average.parameters()).clone()
    for step in range(5):
        task.after_step(module, step)
    assert torch.allclose(next(module.average.parameters()), before + 0.02, atol=1e-5)


@torch.no_grad()
def test_the_judge_s_outputs(tasks: dict[str, Task]) -> None:
    verdict = Judge().eval()(tasks["judge"].batch(0, 0, 1)["image"])
    assert verdict.mask.shape == (8, 1, 16, 16)
    assert verdict.category.shape == (8, 12)
    assert verdict.present.shape == (8, 14)
    assert verdict.second_colour.shape == (8, 10)
    assert verdict.pattern.shape == (8, 5)
    assert torch.allclose(verdict.identity.norm(dim=1), torch.ones(8), atol=1e-5)


def test_the_judge_s_presence_labels_name_both_objects(tasks: dict[str, Task]) -> None:
    task = tasks["judge"]
    assert isinstance(task, JudgeTask)
    pool, batch = ScenePool.open(Path(task.pool_folder)), task.batch(0, 0, 1)
    drawn = draw_indices(task.recipe.seed, 0, 0, 1, len(pool), task.recipe.batch)
    index = np.stack([drawn, pool.partner(drawn)], 1).flatten()
    for row, scene in enumerate(index):
        expected = {int(pool.category[scene]), int(pool.neighbour[scene])} - {-1}
        assert set(batch["present"][row].nonzero()[:, 0].tolist()) == expected
    assert any(len(row.nonzero()) == 2 for row in batch["present"])
