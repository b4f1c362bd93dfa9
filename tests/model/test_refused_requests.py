"""Requests that cannot be carried out: one clear sentence each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from model.adapters.adapter import AdapterError
from model.adapters.image_encoder import ImageEncoders
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.backbone import Backbone
from model.errors import GenerationError
from model.guidance.subjects import Subject
from model.pipeline import RealCustomPipeline
from tests.support.tiny_pipelines import CROSS, PROMPTS, as_arguments, build, subjects


@pytest.fixture(scope="module")
def pipeline(sd_folder: Path) -> RealCustomPipeline:
    return build(sd_folder)


CAT = Subject(picture=subjects(1)[0], word="cat")
HAT = Subject(picture=subjects(2)[1], word="hat")


def multi_subject(*given: Subject) -> dict[str, Any]:
    return {"subjects": [list(given)], "words": None}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt is empty"),
    ({"prompt": []}, "prompt is empty"),
    ({"words": "dog"}, "whose words are: a, cat, in, hat"),
    ({"words": None}, "a subject has no word"),
    ({"words": ["cat", "hat"]}, "2 words for 1 prompts"),
    ({"subjects": subjects(2)}, "2 subjects for 1 prompts"),
    (multi_subject(), "a picture, a Subject, or a list"),
    ({"subjects": CAT}, "together with subjects"),
    (multi_subject(CAT, replace(CAT, word="dog")), "'dog' is not in the prompt"),
    (multi_subject(replace(CAT, word=" ")), "the word is empty"),
    (
        multi_subject(CAT, replace(CAT, word="cat in")),
        "'cat' and 'cat in' overlap in the prompt 'a cat in",
    ),
    (multi_subject(CAT, CAT), "'cat' and 'cat' overlap"),
    (multi_subject(*[CAT] * 6), "6 subjects for the 5 words of the prompt"),
    (multi_subject(CAT, replace(CAT, word=None)), "a subject has no word"),
    (
        multi_subject(replace(CAT, scope=0.6), replace(CAT, word="hat", scope=0.5)),
        "add up to 281 positions",
    ),
    (multi_subject(replace(CAT, scope=2.0)), "mask scope 2.0 keeps"),
    (multi_subject(replace(CAT, scale=-1.0)), "strength of a subject is -1.0"),
    (
        multi_subject(replace(CAT, mask=Image.new("L", (32, 30)))),
        "'cat' has 30 x 32 pixels; .* 32 x 32",
    ),
    (
        multi_subject(replace(CAT, mask=Image.new("L", (32, 32)))),
        "the mask of 'cat' is entirely black",
    ),
    (multi_subject(replace(CAT, mask=Image.new("L", (32, 32), 9)), HAT), "but 0 are free"),
    ({"seeds": [1, 2]}, "2 seeds for 1 prompts"),
    ({"visual_guidance_start": 0.6, "visual_guidance_end": 0.9}, r"visual_guidance_start 0\.6"),
    ({"visual_guidance_end": 1.5}, r"visual_guidance_end 1\.5"),
    ({"mask_scope": 0.001}, "keeps 0 of 256 positions"),
    ({"mask_cross_downscales": [16]}, r"downscales \[1, 2, 4, 8\]"),
    ({"mask_self_downscales": [16]}, r"mask_self_downscales \[16\]: this base has self-attention at"),
    ({"height": 33}, "multiples of 2"),
    ({"steps": 1000}, "1000 steps are too many for a scheduler of 1000 timesteps"),
    ({"latents": torch.zeros(1, 4, 8, 8)}, "latents have shape"),
    ({"latents": torch.full((1, 4, 16, 16), torch.nan)}, "NaN"),
    ({"callback_on_step_end": lambda *_: {"latents": torch.full((1, 4, 16, 16), torch.nan)}}, "became NaN"),
]
OUT_OF_RANGE: list[tuple[dict[str, Any], str]] = [
    ({"steps": 0}, "steps"),
    ({"mask_steps": 0}, "mask_steps"),
    ({"mask_every": 0}, "mask_every"),
    ({"mask_scope": 1.5}, r"mask.scope"),
    ({"visual_scale": float("nan")}, "visual_scale|strength"),
    ({"guidance_scale": float("inf")}, "guidance_scale"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[next(iter(case[0])) for case in REFUSED])
def test_refusals(changes: dict[str, Any], message: str, pipeline: RealCustomPipeline) -> None:
    request = {"prompt": PROMPTS[0], "subjects": subjects(1), "words": "cat"}
    settings = {"steps": 2, "mask_steps": 1, "mask_cross_downscales": CROSS["sd"]}
    with pytest.raises(GenerationError, match=message):
        pipeline(**as_arguments(**{**request, **settings, **changes}))


@pytest.mark.parametrize(("changes", "key"), OUT_OF_RANGE, ids=[next(iter(case[0])) for case in OUT_OF_RANGE])
def test_settings_out_of_range(changes: dict[str, Any], key: str, pipeline: RealCustomPipeline) -> None:
    with pytest.raises(ValueError, match=key):
        pipeline(PROMPTS[0], subjects(1), "cat", **as_arguments(**{"steps": 2, **changes}))


def test_pipelines_that_do_not_fit_together(sd: Backbone, sd_folder: Path) -> None:
    adapter = RealCustomPlusAdapter.from_unet(sd.unet, 99, head_width=99)
    encoders = ImageEncoders.from_pretrained(["clip"], sd_folder, [[0, 1]], 16, 2)
    with pytest.raises(AdapterError, match=r"\b99\b.*\b16\b"):
        RealCustomPipeline(sd, adapter, encoders)
    with pytest.raises(GenerationError, match="no adapter"):
        RealCustomPipeline(sd)("a cat", subjects(1), use_mask=False)
    pipeline = build(sd_folder)
    assert pipeline.adapter is not None
    pipeline.adapter.detach(pipeline.backbone.unet)
    with pytest.raises(GenerationError, match="detached"):
        pipeline("a cat", subjects(1), "cat")
