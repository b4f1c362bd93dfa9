"""Runs that join and leave a batch between steps paint what they paint alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler
from PIL import Image

from model.adapters.adapter import VisualAdapter
from model.adapters.realcustom import RealCustomAdapter
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.dci.settings import DCISettings
from model.guidance.runs import DenoisingRun
from model.guidance.subjects import Subject
from model.pipeline import RealCustomPipeline
from tests.support.tiny_pipelines import CROSS, as_arguments, build, subjects

CAT, HAT = subjects()
HALF = Image.new("L", (32, 32))
HALF.paste(255, (0, 0, 16, 32))

#: Unlike each other in everything that a request can choose.
REQUESTS: list[dict[str, Any]] = [
    {"steps": 5, "subjects": [[Subject(picture=CAT, word="cat")]], "guidance_scale": 2.0},
    {
        "steps": 5,
        "subjects": [[Subject(picture=CAT, word="cat", scope=0.5), Subject(picture=HAT, word="hat", scale=2)]],
    },
    {"steps": 3, "subjects": [[Subject(picture=HAT, word="hat", mask=HALF), Subject(picture=CAT, word="cat")]]},
    {"steps": 4, "subjects": [[Subject(picture=HAT, mask=HALF)]], "negative_prompt": "a hat"},
    {"steps": 4, "subjects": [[Subject(picture=HAT)]], "use_mask": False, "image_guidance_scale": 2.0},
    {"steps": 6, "subjects": [[Subject(picture=CAT, word="cat")]], "mask_every": 2, "mask_steps": 5},
    {"steps": 6, "subjects": [[Subject(picture=CAT, word="cat")]], "visual_guidance_start": 0.5},
    {"steps": 6, "subjects": [[Subject(picture=CAT, word="cat")]], "mask_binary": True, "seeds": [4]},
    {"steps": 4},
    {"steps": 3, "guidance_scale": 1.0, "seeds": [3]},
    {"steps": 4, "height": 48},
]


def in_double(folder: Path, method: type[VisualAdapter] = RealCustomPlusAdapter) -> RealCustomPipeline:
    """With fp32 the rounding of a batch can change which positions a mask selects."""
    pipeline = build(folder, method=method)
    assert pipeline.adapter is not None
    assert pipeline.image_encoders is not None
    base = pipeline.backbone
    for module in (base.unet, base.vae, *base.text_encoders, pipeline.adapter, pipeline.image_encoders):
        module.double()
    return pipeline


def start(pipeline: RealCustomPipeline, request: dict[str, Any], kind: str) -> DenoisingRun:
    common = {"mask_cross_downscales": CROSS[kind], "mask_self_downscales": [1]}
    return pipeline.start("a cat in a hat", **as_arguments(**{**common, **request}))


def alone(pipeline: RealCustomPipeline, request: dict[str, Any], kind: str) -> torch.Tensor:
    run = start(pipeline, request, kind)
    while not run.is_finished:
        pipeline.step([run])
    return run.generation.latents


def together(pipeline: RealCustomPipeline, kind: str) -> list[DenoisingRun]:
    """All requests; one joins at each step, and each leaves when it is finished."""
    runs: list[DenoisingRun] = []
    while len(runs) < len(REQUESTS) or not all(run.is_finished for run in runs):
        if len(runs) < len(REQUESTS):
            runs.append(start(pipeline, REQUESTS[len(runs)], kind))
        pipeline.step([run for run in runs if not run.is_finished])
    return runs


@pytest.mark.parametrize("method", [RealCustomAdapter, RealCustomPlusAdapter])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_requests_at_different_steps_share_passes(
    kind: str, method: type[VisualAdapter], sd_folder: Path, sdxl_folder: Path
) -> None:
    pipeline = in_double(sd_folder if kind == "sd" else sdxl_folder, method)
    runs = together(pipeline, kind)
    for run, request in zip(runs, REQUESTS, strict=True):
        torch.testing.assert_close(run.generation.latents, alone(pipeline, request, kind), rtol=1e-5, atol=1e-5)
    assert max(max(run.rows_together) for run in runs) >= 3
    changed = alone(pipeline, REQUESTS[0] | {"subjects": [[Subject(picture=HAT, word="cat")]]}, kind)
    assert (changed - runs[0].generation.latents).abs().max() > 0.1  # more than any tolerance above


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler])
def test_every_run_has_its_own_scheduler(scheduler: Any, sd_folder: Path) -> None:
    pipeline = in_double(sd_folder)
    pipeline.scheduler = scheduler.from_config(pipeline.backbone.scheduler.config)
    expected = [alone(pipeline, request, "sd") for request in REQUESTS[:2]]
    first = start(pipeline, REQUESTS[0], "sd")
    pipeline.step([first])
    second = start(pipeline, REQUESTS[1], "sd")
    while not second.is_finished:
        pipeline.step([run for run in (first, second) if not run.is_finished])
    for run, latents in zip((first, second), expected, strict=True):
        torch.testing.assert_close(run.generation.latents, latents, rtol=1e-5, atol=1e-5)


def test_a_run_with_dci_beside_others(sd_folder: Path) -> None:
    pipeline = in_double(sd_folder)
    dci = DCISettings(concept="cat", auxiliary_noun="toy", auxiliary_share=0.5)
    request = {"steps": 4, "dci": dci}
    expected = alone(pipeline, request, "sd")
    run, other = start(pipeline, request, "sd"), start(pipeline, {"steps": 4}, "sd")
    while not run.is_finished:
        pipeline.step([run, other])
    torch.testing.assert_close(run.generation.latents, expected)
