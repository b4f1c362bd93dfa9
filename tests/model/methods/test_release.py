"""The authors' inference with their released weights, against a plain statement of it on small random models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model.adapters.image_encoder import ImageEncoders
from model.backbone import load_backbone
from model.guidance.settings import RELEASE_SETTINGS
from model.methods.release import NEGATIVE_PROMPT
from model.pipeline import RealCustomPipeline
from tests.support import release_statement
from tests.support.released_models import (
    ENCODER_NAMES,
    released_state,
    write_release_encoders,
    write_released_adapter,
)
from tests.support.tiny_models import write_sdxl

PROMPT = "a cat in a hat"
SIZE = (44, 60)  # height, width; attention at 11 x 15 and 6 x 8 positions
NEGATIVE = "ugly cat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SDXL whose attention is not flat, with the image encoders of the release."""
    folder = write_sdxl(tmp_path_factory.mktemp("release"))
    backbone = load_backbone(folder)
    with torch.no_grad():
        for name, parameter in backbone.unet.named_parameters():
            if name.endswith("to_q.weight"):
                parameter.mul_(8)
    backbone.unet.save_pretrained(folder / "unet")
    return write_release_encoders(folder)


@pytest.fixture(scope="module")
def pipeline(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RealCustomPipeline:
    return loaded(folder, tmp_path_factory.mktemp("adapter"), shallow=False)


def loaded(folder: Path, place: Path, *, shallow: bool) -> RealCustomPipeline:
    adapter = write_released_adapter(place / "adapter", load_backbone(folder).unet, shallow=shallow)
    return RealCustomPipeline.from_pretrained(folder, adapter, image_encoders=ENCODER_NAMES)


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def latents_of(pipeline: RealCustomPipeline, noise: Tensor, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """The decoded latents, and the masks."""
    run = pipeline.start(
        PROMPT, picture(), "cat", height=SIZE[0], width=SIZE[1], latents=noise, negative_prompt=NEGATIVE, **options
    )
    while not run.is_finished:
        pipeline.step([run])
    assert run.guidance is not None
    return run.generation.latents, [masks[0, 0] for masks in run.guidance.history]


def noise_of(seed: int = 2) -> Tensor:
    return torch.randn(1, 4, SIZE[0] // 2, SIZE[1] // 2, generator=torch.Generator().manual_seed(seed))


WAYS: dict[str, tuple[bool, dict[str, Any]]] = {
    "as released": (False, {}),
    "with shallow features": (True, {"steps": 5, "mask_steps": 3}),
    "DDIM": (False, {"steps": 5, "mask_steps": 3, "sampler": "ddim"}),
    "min_max_per_channel": (False, {"steps": 4, "mask_steps": 3, "mask_normalization": "min_max_per_channel"}),
    "other values": (False, {"steps": 4, "mask_steps": 2, "guidance_scale": 7.5, "mask_scope": 0.2}),
}


@pytest.mark.parametrize(("shallow", "changes"), WAYS.values(), ids=list(WAYS))
def test_the_whole_loop_is_that_of_the_statement(
    shallow: bool, changes: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    pipeline = loaded(folder, tmp_path, shallow=shallow)
    settings = replace(pipeline.default_settings, **changes)
    got, masks = latents_of(pipeline, noise_of(), settings=settings if changes else None)
    expected_masks: list[Tensor] = []
    expected = release_statement.final_latents(
        folder,
        released_state(load_backbone(folder).unet, shallow),
        PROMPT,
        pipeline.backbone.token_positions(PROMPT, "cat"),
        picture(),
        noise_of(),
        NEGATIVE,
        steps=settings.steps,
        guidance=settings.guidance_scale,
        scope=settings.mask_scope,
        mask_steps=settings.mask_steps or 0,
        mode=settings.mask_normalization,
        sampler={"dpm": release_statement.dpm, "ddim": release_statement.ddim}[settings.sampler],
        masks=expected_masks,
    )
    assert len(masks) == len(expected_masks) == settings.mask_steps
    torch.testing.assert_close(torch.stack(masks), torch.stack(expected_masks), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
