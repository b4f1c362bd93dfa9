"""The command `generate` with imported released weights: a file of the authors' form to a picture."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pipeline
from model.adapters import released_weights
from model.backbone import load_backbone
from model.methods.release import NEGATIVE_PROMPT
from model.pipeline import RealCustomPipeline
from tests.support.command_errors import error_of
from tests.support.released_models import ENCODER_NAMES, released_state, write_release_encoders
from tests.support.tiny_models import write_sdxl

PROMPT = "a cat in a hat"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release_encoders(write_sdxl(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Imported with the command."""
    folder = tmp_path_factory.mktemp("import")
    unet = load_backbone(base).unet
    torch.save({"module": released_state(unet, shallow=True), "step": 3}, folder / "released.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(released_weights, "sdxl_unet", lambda: unet)
        released_weights.main([str(folder / "released.pth"), str(folder / "adapter")])
    return folder / "adapter"


def words(base: Path, adapter: Path, tmp_path: Path, subject: Path, *settings: str) -> list[str]:
    given = {
        "run.folder": tmp_path / "run",
        "backbone.adapter": adapter,
        "backbone.weights": base,
        "backbone.dtype": "float32",
        "backbone.image_encoders": f"[{', '.join(ENCODER_NAMES)}]",
        "backbone.reference_size": 28,
    }
    chosen = [f"{key}={value}" for key, value in given.items()] + list(settings)
    options = [word for setting in chosen for word in ("--set", setting)]
    request = ["--subject", str(subject), "--word", "cat", "--prompt", PROMPT, "--seed", "5"]
    return ["generate", "--profile", "sdxl", *request, *options]


def painted(command: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[Image.Image, dict[str, Any]]:
    assert pipeline.main(command) == 0
    path = capsys.readouterr().out.splitlines()[0]
    with Image.open(path) as picture:
        return picture.convert("RGB"), json.loads(picture.info["realword"])


def test_generate_paints_as_the_authors_without_being_asked(
    base: Path, adapter: Path, subject: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    got, made = painted(words(base, adapter, tmp_path, subject), capsys)
    own = RealCustomPipeline.from_pretrained(base, adapter, ENCODER_NAMES)
    assert made["settings"] == asdict(own.default_settings)
    assert made["negative_prompt"] == NEGATIVE_PROMPT
    with Image.open(subject) as reference:
        expected = own(PROMPT, reference.convert("RGB"), "cat", seeds=5).images[0]
    assert np.abs(np.asarray(got, int) - np.asarray(expected, int)).max() <= 1


def test_settings_of_the_user_win(
    base: Path, adapter: Path, subject: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ("inference.guidance_scale=7.5", "inference.sampler=ddim", "inference.mask_scope=0.3")
    _, made = painted([*words(base, adapter, tmp_path, subject, *chosen), "--steps", "3"], capsys)
    own = RealCustomPipeline.from_pretrained(base, adapter, ENCODER_NAMES).default_settings
    expected = replace(own, guidance_scale=7.5, sampler="ddim", mask_scope=0.3, steps=3, mask_steps=3)
    assert made["settings"] == asdict(expected)


REFUSED = {
    "other shallow layers": ["backbone.shallow_layers=[[1, 2, 3], [1, 2, 3]]", "set backbone.shallow_layers="],
    "more tiles": ["backbone.high_resolution_tiles=3", "set backbone.high_resolution_tiles"],
    "another size": ["backbone.reference_size=384", "set backbone.reference_size=28"],
    "other encoders": ["backbone.image_encoders=[clip, dino]", "set backbone.image_encoders to [google/siglip"],
    "masks that do not fit": ["inference.mask_steps=26", "mask_steps is 26"],
}


@pytest.mark.parametrize(("setting", "message"), REFUSED.values(), ids=list(REFUSED))
def test_settings_that_the_weights_cannot_take(
    setting: str,
    message: str,
    base: Path,
    adapter: Path,
    subject: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, said = error_of(capsys, *words(base, adapter, tmp_path, subject, setting))
    assert code
    assert message in said


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_run_trains_its_own(command: str, adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, said = error_of(capsys, command, "--profile", "sdxl", "--set", f"backbone.adapter={adapter}")
    assert said.startswith("backbone.adapter is an adapter from elsewhere")


def test_adapters_that_are_none(base: Path, subject: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (tmp_path, tmp_path / "nowhere", Path("some") / "where" / "else"):
        assert "is no folder with config.json" in error_of(capsys, *words(base, place, tmp_path, subject))[1]
    without_base = words(base, tmp_path, tmp_path, subject, "backbone.weights=null")
    assert "set backbone.weights" in error_of(capsys, *without_base)[1]
