"""The arguments of a call with subjects: the pipeline's own, and the subjects'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.diffusers_pipelines.attachment import attach_adapter
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
    widen_for_inpainting,
)
from tests.support.tiny_pipelines import PROMPTS, subjects


def embedded(pipe: Any, prompts: list[str]) -> dict[str, Any]:
    embeds, negative = pipe.encode_prompt(prompts, "cpu", 1, True)
    return {"prompt_embeds": embeds, "negative_prompt_embeds": negative}


@pytest.mark.parametrize("method", METHODS)
def test_guidance_one_paints_without_unconditional_rows(
    method: str, sd_folder: Path, adapters: dict[tuple[str, str], Path]
) -> None:
    pipe = attach_adapter(build_pipeline("StableDiffusionPipeline", sd_folder), adapters["sd", method])
    acting = paint(pipe, guidance_scale=0.0, **SUBJECT)
    assert np.array_equal(acting, paint(pipe, guidance_scale=1.0, **SUBJECT))
    assert not np.array_equal(acting, paint(pipe, guidance_scale=1.0))


def test_pictures_of_a_prompt_share_its_subjects(pipe: Any) -> None:
    latents = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    given: dict[str, Any] = {"subjects": subjects(), "words": ["cat", "toy"]}
    together = paint(pipe, PROMPTS, **given, num_images_per_prompt=2, latents=latents)
    alone = [
        paint(
            pipe, PROMPTS[row // 2], subjects=given["subjects"][row // 2], words=given["words"][row // 2], latents=one
        )
        for row, one in enumerate(latents.split(1))
    ]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-4)


def test_embedded_prompts_give_the_same_pictures(pipe: Any) -> None:
    wanted = paint(pipe, PROMPTS, subjects=picture(7), words="cat")
    given = embedded(pipe, PROMPTS)
    got = paint(pipe, None, **given, subjects=picture(7), words="cat", embedded_prompt=PROMPTS)
    assert np.array_equal(got, wanted)
    everywhere = paint(pipe, None, **given, subjects=picture(7), use_mask=False)
    assert np.array_equal(everywhere, paint(pipe, PROMPTS, subjects=picture(7), use_mask=False))


def test_rescaled_guidance_and_callbacks_are_the_pipelines(pipe: Any) -> None:
    seen = []

    def note(pipe: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(step)
        return tensors

    rescaled = paint(pipe, **SUBJECT, guidance_rescale=0.7, callback_on_step_end=note)
    assert seen == list(range(STEPS))
    assert not np.array_equal(rescaled, paint(pipe, **SUBJECT))


def test_guidance_that_a_callback_switches_off(pipe: Any) -> None:
    def switch_off(pipe: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"][-1:]
        return tensors

    options = {"callback_on_step_end": switch_off, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    assert not np.array_equal(paint(pipe, **SUBJECT, **options), paint(pipe, **options))


def test_settings_scale_masks_and_steps_of_a_call(pipe: Any) -> None:
    plain, acting = paint(pipe), paint(pipe, **SUBJECT)
    assert np.array_equal(paint(pipe, subjects=Subject(picture=picture(7), word="cat", scale=0.0)), plain)
    late = paint(pipe, **SUBJECT, visual_guidance_start=0.6)
    assert not np.array_equal(late, acting)
    mask = picture().convert("L").point(lambda value: 255)
    given = paint(pipe, subjects=Subject(picture=picture(7), mask=mask))
    np.testing.assert_allclose(given, paint(pipe, subjects=picture(7), use_mask=False), atol=1e-4)
    wide = paint(pipe, **SUBJECT, settings=settings_for("sd", mask_scope=1.0))
    assert not np.array_equal(wide, acting)


@pytest.mark.parametrize("method", METHODS)
def test_an_inpainting_unet_of_nine_channels(
    method: str, sd_folder: Path, adapters: dict[tuple[str, str], Path]
) -> None:
    pipe = build_pipeline("StableDiffusionInpaintPipeline", sd_folder)
    pipe.register_modules(unet=widen_for_inpainting(pipe.unet))
    arguments = arguments_of("StableDiffusionInpaintPipeline")
    plain = paint(pipe, **arguments)
    attach_adapter(pipe, adapters["sd", method])
    assert not np.array_equal(paint(pipe, **arguments, **SUBJECT), plain)
    assert np.array_equal(paint(pipe, **arguments), plain)
