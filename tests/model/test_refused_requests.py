"""Requests that cannot be carried out: one clear sentence each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from model.adapters.image_encoder import ImageEncoders
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.backbone import Backbone
from model.errors import GenerationError
from model.guidance.subjects import Subject
from model.pipeline import RealCustomPipeline
from tests.support.tiny_pipelines import CROSS, PROMPTS, build, subjects


@pytest.fixture(scope="module")
def pipeline(sd_folder: Path) -> RealCustomPipeline:
    return build(sd_folder)


CAT = Subject(picture=subjects(1)[0], word="cat")
HAT = Subject(picture=subjects(2)[1], word="hat")


def multi_subject(*given: Subject) -> dict[str, Any]:
    return {"subjects": [list(given)], "words": None}


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"prompt": ""}, GenerationError, "prompt is empty"),
    ({"prompt": []}, GenerationError, "prompt is empty"),
    ({"words": "dog"}, GenerationError, "whose words are: a, cat, in, hat"),
    ({"words": None}, GenerationError, "name the word"),
    ({"words": ["cat", "hat"]}, GenerationError, "2 words for 1 prompts"),
    ({"subjects": subjects(2)}, GenerationError, "2 subjects for 1 prompts"),
    (multi_subject(), GenerationError, "a picture, a Subject, or a list"),
    ({"subjects": CAT}, GenerationError, "beside subjects that have words of their own"),
    (multi_subject(CAT, replace(CAT, word="dog")), GenerationError, "'dog' is not in the prompt"),
    (multi_subject(replace(CAT, word=" ")), GenerationError, "no target word was given"),
    (
        multi_subject(CAT, replace(CAT, word="cat in")),
        GenerationError,
        "'cat' and 'cat in' overlap in the prompt 'a cat in",
    ),
    (multi_subject(CAT, CAT), GenerationError, "'cat' and 'cat' overlap"),
    (multi_subject(*[CAT] * 6), GenerationError, "6 subjects for the 5 words of the prompt"),
    (multi_subject(CAT, replace(CAT, word=None)), GenerationError, "name the word"),
    (
        multi_subject(replace(CAT, scope=0.6), replace(CAT, word="hat", scope=0.5)),
        GenerationError,
        "add up to 281 positions",
    ),
    (multi_subject(replace(CAT, scope=2.0)), GenerationError, "mask scope 2.0 keeps"),
    ({"visual_scale": float("nan")}, GenerationError, "strength of a subject is nan"),
    (multi_subject(replace(CAT, scale=-1.0)), GenerationError, "strength of a subject is -1.0"),
    (
        multi_subject(replace(CAT, mask=Image.new("L", (32, 30)))),
        GenerationError,
        "'cat' has 30 x 32 pixels; .* 32 x 32",
    ),
    (
        multi_subject(replace(CAT, mask=Image.new("L", (32, 32)))),
        GenerationError,
        "the mask of 'cat' is black all over",
    ),
    (multi_subject(replace(CAT, mask=Image.new("L", (32, 32), 9)), HAT), GenerationError, "but 0 are free"),
    ({"seeds": [1, 2]}, GenerationError, "2 seeds for 1 prompts"),
    ({"steps": 0}, GenerationError, "0 denoising steps"),
    ({"mask_steps": 0}, GenerationError, "mask_steps is 0"),
    ({"mask_every": 0}, GenerationError, "mask_every is 0"),
    ({"visual_guidance_start": 0.6, "visual_guidance_end": 0.9}, GenerationError, "no step for the subjects"),
    ({"visual_guidance_end": 1.5}, GenerationError, "from 0.0 to 1.5"),
    ({"mask_scope": 1.5}, GenerationError, "mask scope 1.5 keeps"),
    ({"mask_scope": 0.001}, GenerationError, "keeps 0 of 256 positions"),
    ({"mask_cross_downscales": [16]}, GenerationError, r"downscales \[1, 2, 4, 8\]"),
    ({"mask_self_downscales": [3]}, GenerationError, r"mask_self_downscales \[3\]: this base has self-attention at"),
    ({"height": 33}, GenerationError, "multiples of 2"),
    ({"latents": torch.zeros(1, 4, 8, 8)}, GenerationError, "latents of shape"),
    ({"latents": torch.full((1, 4, 16, 16), torch.nan)}, GenerationError, "NaN"),
    ({"guidance_scale": float("inf")}, GenerationError, "became NaN"),
]


@pytest.mark.parametrize(("changes", "kind", "message"), REFUSED, ids=[next(iter(case[0])) for case in REFUSED])
def test_refusals(changes: dict[str, Any], kind: type[Exception], message: str, pipeline: RealCustomPipeline) -> None:
    request = {"prompt": PROMPTS[0], "subjects": subjects(1), "words": "cat", "steps": 2, "mask_steps": 1}
    with pytest.raises(kind, match=message):
        pipeline(**{**request, "mask_cross_downscales": CROSS["sd"], **changes})


def test_pipelines_that_do_not_fit_together(sd: Backbone, sd_folder: Path) -> None:
    adapter = RealCustomPlusAdapter.from_unet(sd.unet, 99, head_width=99)
    encoders = ImageEncoders.from_pretrained(["clip"], sd_folder, [[0, 1]], 16, 2)
    with pytest.raises(GenerationError, match="width 99, the encoders give 16"):
        RealCustomPipeline(sd, adapter, encoders)
    with pytest.raises(GenerationError, match="no adapter"):
        RealCustomPipeline(sd)("a cat", subjects(1), use_mask=False)
    pipeline = build(sd_folder)
    assert pipeline.adapter is not None
    pipeline.adapter.detach(pipeline.backbone.unet)
    with pytest.raises(GenerationError, match="detached"):
        pipeline("a cat", subjects(1), "cat")
