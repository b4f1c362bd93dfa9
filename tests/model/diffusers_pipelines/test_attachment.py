"""An adapter in diffusers' own pipelines: it acts in each of them, as in this project's, and leaves nothing behind."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from model.diffusers_pipelines.attachment import attach_adapter, detach_adapter
from model.diffusers_pipelines.supported import PIPELINES
from model.errors import GenerationError
from model.guidance.subjects import Subject
from tests.support.tiny_diffusers_pipelines import (
    METHODS,
    STEPS,
    SUBJECT,
    arguments_of,
    build_pipeline,
    paint,
    picture,
    settings_for,
)
from tests.support.tiny_pipelines import PROMPTS, build, subjects

#: Both methods, for tables in which the second one only repeats the first.
BOTH = ["realcustom++", pytest.param("realcustom", marks=pytest.mark.slow)]


def folder_of(name: str, request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue("sdxl_folder" if "XL" in name else "sd_folder")
    return folder


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_with_subjects_without_and_after(
    name: str, method: str, adapters: dict[tuple[str, str], Path], request: pytest.FixtureRequest
) -> None:
    family, arguments = "sdxl" if "XL" in name else "sd", arguments_of(name)
    pipe = build_pipeline(name, folder_of(name, request))
    plain = paint(pipe, **arguments)
    assert attach_adapter(pipe, adapters[family, method]) is pipe
    assert np.array_equal(paint(pipe, **arguments), plain)
    with_subject = paint(pipe, **arguments, **SUBJECT)
    assert np.isfinite(with_subject).all()
    assert not np.array_equal(with_subject, plain)
    assert np.array_equal(paint(pipe, **arguments), plain)  # nothing stays in the UNet
    detach_adapter(pipe)
    assert type(pipe) is getattr(diffusers, name)
    assert np.array_equal(paint(pipe, **arguments), plain)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_pictures_are_those_of_the_own_pipeline(
    name: str, method: str, scheduler: str, adapters: dict[tuple[str, str], Path], request: pytest.FixtureRequest
) -> None:
    """Two prompts with different subjects, one of them with two subjects; masks from both branches."""
    family, folder = "sdxl" if "XL" in name else "sd", folder_of(name, request)
    pipe = build_pipeline(name, folder)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    one, other = subjects()
    both = [[Subject(picture=one, word="cat")], [Subject(picture=one, word="toy"), Subject(picture=other, word="cat")]]
    settings = settings_for(family, mask_scope=0.2)
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    attach_adapter(pipe, adapters[family, method])
    got = pipe(
        PROMPTS,
        subjects=both,
        settings=settings,
        latents=latents * 1,
        num_inference_steps=STEPS,
        guidance_scale=settings.guidance_scale,
        output_type="np",
    ).images
    own = build(folder, pipe.scheduler, METHODS[method])
    wanted = own(PROMPTS, both, settings=settings, latents=latents * 1).images
    np.testing.assert_allclose(got, np.stack([np.asarray(image) for image in wanted]) / 255, atol=0.003)


SCHEDULERS = [
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
    "TCDScheduler",
]


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(scheduler: str, method: str, sd_folder: Path, adapters: dict[tuple[str, str], Path]) -> None:
    pipe = attach_adapter(build_pipeline("StableDiffusionPipeline", sd_folder), adapters["sd", method])
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    with_subject = paint(pipe, **SUBJECT, num_inference_steps=5)
    assert np.isfinite(with_subject).all()
    assert not np.array_equal(with_subject, paint(pipe, num_inference_steps=5))


def test_realcustom_refuses_a_scheduler_without_noise_levels(
    sd_folder: Path, adapters: dict[tuple[str, str], Path]
) -> None:
    pipe = attach_adapter(build_pipeline("StableDiffusionPipeline", sd_folder), adapters["sd", "realcustom"])
    pipe.scheduler = diffusers.EDMEulerScheduler()
    with pytest.raises(GenerationError, match=r"EDMEulerScheduler has no alphas_cumprod.*use another scheduler"):
        paint(pipe, **SUBJECT)


def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Path(__file__).resolve().parents[3]
    monkeypatch.chdir(repository)
    blocks = re.findall(r"(?:^    .*\n|^\n)+", (repository / "docs/diffusers.md").read_text(), re.MULTILINE)
    example = textwrap.dedent(next(block for block in blocks if "attach_adapter" in block))
    picture().save(tmp_path / "subject.png")
    names: dict[str, Any] = {}
    exec(example.replace("subject.png", str(tmp_path / "subject.png")), names)
    assert names["picture"].size == (64, 64)
