"""What an adapter cannot be attached to, and calls that are refused; and adapters that do not name their encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from model.adapters.adapter import AdapterError, VisualAdapter
from model.diffusers_pipelines.attachment import attach_adapter
from model.errors import GenerationError, ModelError
from model.guidance.settings import InferenceSettings
from model.guidance.subjects import Subject
from tests.support.tiny_diffusers_pipelines import (
    STEPS,
    SUBJECT,
    build_pipeline,
    paint,
    picture,
    settings_for,
)
from tests.support.tiny_models import ENCODERS
from tests.support.tiny_pipelines import PROMPTS, build


def folder_of(name: str, request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue("sdxl_folder" if "XL" in name else "sd_folder")
    return folder


def test_other_classes_are_refused(adapters: dict[tuple[str, str], Path]) -> None:
    with pytest.raises(ModelError, match="cannot be attached to a DDPMPipeline; it needs one of StableDiffusionPipe"):
        attach_adapter(
            diffusers.DDPMPipeline(diffusers.UNet2DModel(sample_size=8), DDIMScheduler()), adapters["sd", "realcustom"]
        )


def test_a_refiner_is_refused(sdxl_folder: Path, adapters: dict[tuple[str, str], Path]) -> None:
    pipe = build_pipeline("StableDiffusionXLImg2ImgPipeline", sdxl_folder)
    pipe.register_modules(tokenizer=None, text_encoder=None)
    with pytest.raises(ModelError, match=r"SDXL refiner.*attach the adapter to a base pipeline"):
        attach_adapter(pipe, adapters["sdxl", "realcustom++"])


@pytest.mark.parametrize(("name", "family"), [("StableDiffusionPipeline", "sdxl"), ("StableDiffusionXLPipeline", "sd")])
def test_an_adapter_of_another_family_is_refused(
    name: str, family: str, adapters: dict[tuple[str, str], Path], request: pytest.FixtureRequest
) -> None:
    pipe = build_pipeline(name, folder_of(name, request))
    with pytest.raises(AdapterError, match="does not fit this base model"):
        attach_adapter(pipe, adapters[family, "realcustom++"])
    assert type(pipe) is getattr(diffusers, name)


def test_an_adapter_that_does_not_name_its_encoders(sd_folder: Path, tmp_path: Path) -> None:
    adapter = build(sd_folder).adapter
    assert isinstance(adapter, VisualAdapter)
    adapter.save_pretrained(tmp_path)
    pipe = build_pipeline("StableDiffusionPipeline", sd_folder)
    with pytest.raises(AdapterError, match=r"no usage\.json.*image_encoders, shallow_layers, reference_size, tiles"):
        attach_adapter(pipe, tmp_path)
    with pytest.raises(AdapterError, match=r"no option 'tile'; it has image_encoders"):
        attach_adapter(pipe, tmp_path, {**ENCODERS, "tile": 2})
    attach_adapter(pipe, tmp_path, ENCODERS, settings_for("sd"))
    assert not np.array_equal(paint(pipe, **SUBJECT), paint(pipe))


def test_a_pipeline_that_was_not_loaded_from_a_folder(sd_folder: Path, adapters: dict[tuple[str, str], Path]) -> None:
    """Its image encoders are no parts of a folder."""
    loaded = build_pipeline("StableDiffusionPipeline", sd_folder)
    pipe = StableDiffusionPipeline(**loaded.components, requires_safety_checker=False)
    with pytest.raises(ModelError, match="image encoder 'clip' cannot be loaded"):
        attach_adapter(pipe, adapters["sd", "realcustom++"])
    folders = {"image_encoders": [str(sd_folder / "clip")]}
    attach_adapter(pipe, adapters["sd", "realcustom++"], folders)
    assert pipe("a cat", **SUBJECT, num_inference_steps=STEPS).images


def ip_adapter(pipe: Any) -> None:
    processor = diffusers.models.attention_processor.IPAdapterAttnProcessor2_0
    pipe.unet.set_attn_processor({name: processor(8, 16) for name in pipe.unet.attn_processors})


def custom_diffusion(pipe: Any) -> None:
    processor = diffusers.models.attention_processor.CustomDiffusionAttnProcessor2_0
    pipe.unet.set_attn_processor({name: processor(False, False) for name in pipe.unet.attn_processors})


def compiled_in_place(pipe: Any) -> None:
    pipe.unet.compile(backend="eager")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (ip_adapter, r"IP-Adapter is loaded.*unload_ip_adapter"),
        (custom_diffusion, r"CustomDiffusionAttnProcessor2_0.*set_default_attn_processor"),
        (compiled_in_place, r"compiled in place.*torch\.compile\(pipe\.unet\)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_changes_of_the_unet_that_are_refused(change: Any, sentence: str, pipe: Any) -> None:
    change(pipe)
    with pytest.raises(ModelError, match=sentence):
        paint(pipe, **SUBJECT)


REQUESTS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a word that is not there": ("a hat", SUBJECT, "'cat' is not in the prompt"),
    "no word": ("a cat", {"subjects": picture()}, "no word"),
    "a word twice": ("a cat", {"subjects": [[Subject(picture=picture(), word="cat")] * 2]}, "2 subjects|overlap"),
    "subjects for other prompts": (PROMPTS, {"subjects": [picture()], "words": "cat"}, "1 subjects for 2 prompts"),
    "no prompt": (None, SUBJECT, "give prompt or prompt_embeds"),
    "embeddings without words": (
        None,
        {**SUBJECT, "prompt_embeds": torch.zeros(1, 24, 16), "negative_prompt_embeds": torch.zeros(1, 24, 16)},
        "embedded_prompt, or use_mask=False",
    ),
    "long embeddings": (
        None,
        {**SUBJECT, "prompt_embeds": torch.zeros(1, 48, 16), "embedded_prompt": "a cat"},
        "48 tokens, not the 24",
    ),
    "other embeddings": (
        None,
        {**SUBJECT, "prompt_embeds": torch.zeros(2, 24, 16), "embedded_prompt": "a cat"},
        "1 prompts, prompt_embeds have 2",
    ),
    "no step": ("a cat", {**SUBJECT, "visual_guidance_start": 0.9}, "none of 3 steps"),
    "other layers": ("a cat", {**SUBJECT, "settings": InferenceSettings(mask_cross_downscales=[16])}, "downscales"),
}


@pytest.mark.parametrize(("prompt", "options", "sentence"), REQUESTS.values(), ids=REQUESTS)
def test_requests_that_are_refused(prompt: Any, options: dict[str, Any], sentence: str, pipe: Any) -> None:
    with pytest.raises(GenerationError, match=sentence):
        paint(pipe, prompt, **options)
