"""The weights folder: its errors on random weights; the shipped weights are complete and load."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from model.micro_sd.fingerprint import (
    DamagedWeightsError,
    ForeignWeightsError,
    OutdatedWeightsError,
    PartialWeightsError,
)
from model.micro_sd.recipe import PartRecipe, Recipe
from model.micro_sd.weights import WEIGHTS_FOLDER, verify_weights
from tests.support.random_backbone import write_random_backbone


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_backbone(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "weights"))


def test_a_complete_folder_is_accepted(folder: Path) -> None:
    verify_weights(folder, Recipe())
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]


def test_a_flipped_bit_is_damage(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DamagedWeightsError, match=r"unet.*is damaged"):
        verify_weights(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "vae" / "config.json").unlink()
    with pytest.raises(PartialWeightsError, match=r"vae/config\.json is missing"):
        verify_weights(folder)


def test_a_truncated_fingerprint_is_damage(folder: Path) -> None:
    (folder / "fingerprint.json").write_text('{"format": "mic')
    with pytest.raises(DamagedWeightsError, match="not JSON"):
        verify_weights(folder)


def test_other_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ForeignWeightsError, match=r"no fingerprint\.json"):
        verify_weights(tmp_path)
    (folder / "fingerprint.json").write_text('{"format": "something else"}')
    with pytest.raises(ForeignWeightsError, match="not a fingerprint"):
        verify_weights(folder)


def test_another_world_or_recipe_is_outdated(folder: Path) -> None:
    other = Recipe(unet=PartRecipe(steps=1, batch=2, lr=1.0, warmup=1, weight_decay=0.0, seed=0))
    with pytest.raises(OutdatedWeightsError, match="another recipe"):
        verify_weights(folder, other)
    path = folder / "fingerprint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"world_version": -1}))
    with pytest.raises(OutdatedWeightsError, match="world version -1"):
        verify_weights(folder)


def test_shipped_weights_are_complete_and_of_this_code() -> None:
    verify_weights(WEIGHTS_FOLDER, Recipe())


def test_plain_diffusers_loads_the_shipped_weights() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(WEIGHTS_FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    picture = pipeline("a photo of a red ball on the beach", num_inference_steps=4, generator=generator).images[0]
    assert picture.size == (64, 64)
    assert len(picture.getcolors(64 * 64)) > 500
