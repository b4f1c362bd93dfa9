"""What else is done to a pipeline that has an adapter: LoRA, offloading, compilation, saving, conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.controlnet.pipeline_controlnet import MultiControlNetModel
from peft import LoraConfig, get_peft_model_state_dict

from model.diffusers_pipelines.attachment import attach_adapter
from tests.support.tiny_diffusers_pipelines import (
    METHODS,
    SUBJECT,
    arguments_of,
    build_pipeline,
    paint,
    picture,
)


def write_lora(unet: Any, folder: Path) -> None:
    torch.manual_seed(5)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))


@pytest.mark.parametrize("loaded", ["before", "after"])
def test_lora(loaded: str, sd_folder: Path, adapters: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    write_lora(build_pipeline("StableDiffusionPipeline", sd_folder).unet, tmp_path)
    pipe = build_pipeline("StableDiffusionPipeline", sd_folder)
    if loaded == "before":
        pipe.load_lora_weights(tmp_path)
    attach_adapter(pipe, adapters["sd", "realcustom++"])
    if loaded == "after":
        pipe.load_lora_weights(tmp_path)
    both, lora = paint(pipe, **SUBJECT), paint(pipe)
    weak = paint(pipe, **SUBJECT, cross_attention_kwargs={"scale": 0.3})
    pipe.unload_lora_weights()
    adapter, plain = paint(pipe, **SUBJECT), paint(pipe)
    assert len({image.tobytes() for image in (both, lora, weak, adapter, plain)}) == 5


def slicing(pipe: Any) -> None:
    pipe.enable_attention_slicing()


def tiling(pipe: Any) -> None:
    pipe.vae.enable_tiling()


def fused(pipe: Any) -> None:
    pipe.fuse_qkv_projections()


def offloading(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def channels_last(pipe: Any) -> None:
    pipe.unet.to(memory_format=torch.channels_last)


def another_call(pipe: Any) -> None:
    paint(pipe, **SUBJECT)


def attached_again(pipe: Any) -> None:
    attach_adapter(pipe, pipe._attachment.adapter, pipe._attachment.encoders, pipe._attachment.settings)


def compiled(pipe: Any) -> None:
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def compiled_blocks(pipe: Any) -> None:
    pipe.unet.compile_repeated_blocks(backend="eager")


def offloading_by_groups(pipe: Any) -> None:
    cpu = torch.device("cpu")
    pipe.unet.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


CHANGES = [
    slicing,
    tiling,
    fused,
    offloading,
    offloading_by_groups,
    channels_last,
    another_call,
    attached_again,
    pytest.param(compiled, marks=pytest.mark.slow),
    pytest.param(compiled_blocks, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changes_a_pipeline_does_not_change_its_pictures(change: Any, pipe: Any) -> None:
    plain, acting = paint(pipe), paint(pipe, **SUBJECT)
    change(pipe)
    np.testing.assert_allclose(paint(pipe, **SUBJECT), acting, atol=2e-4)
    np.testing.assert_allclose(paint(pipe), plain, atol=2e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", ["before", "after"])
def test_half_precision(order: str, method: str, sd_folder: Path, adapters: dict[tuple[str, str], Path]) -> None:
    pipe = build_pipeline("StableDiffusionPipeline", sd_folder)
    if order == "before":
        pipe.to(torch.bfloat16)
    attach_adapter(pipe, adapters["sd", method])
    if order == "after":
        pipe.to(torch.bfloat16)
    assert not np.array_equal(paint(pipe, **SUBJECT), paint(pipe))


@pytest.mark.parametrize("options", [{"guess_mode": True}, {"image": [picture(2), picture(3)]}], ids=["guess", "two"])
def test_controlnets(options: dict[str, Any], sd_folder: Path, adapters: dict[tuple[str, str], Path]) -> None:
    name = "StableDiffusionControlNetPipeline"
    pipe = attach_adapter(build_pipeline(name, sd_folder), adapters["sd", "realcustom++"])
    if "image" in options:
        pipe.controlnet = MultiControlNetModel([pipe.controlnet, pipe.controlnet])
    arguments = {**arguments_of(name), **options}
    assert not np.array_equal(paint(pipe, **arguments, **SUBJECT), paint(pipe, **arguments))


def test_a_distilled_unet_that_takes_the_guidance_scale(sd_folder: Path, adapters: dict[tuple[str, str], Path]) -> None:
    pipe = build_pipeline("StableDiffusionPipeline", sd_folder)
    unet = UNet2DConditionModel.from_config(pipe.unet.config, time_cond_proj_dim=8).eval()
    unet.load_state_dict(pipe.unet.state_dict(), strict=False)
    pipe.register_modules(unet=unet, scheduler=diffusers.LCMScheduler.from_config(pipe.scheduler.config))
    attach_adapter(pipe, adapters["sd", "realcustom++"])
    assert not np.array_equal(paint(pipe, **SUBJECT), paint(pipe))


def test_a_saved_pipeline_is_the_base_model(pipe: Any, sd_folder: Path, tmp_path: Path) -> None:
    plain = paint(pipe)
    pipe.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "model_index.json").read_text())
    assert saved["_class_name"] == "StableDiffusionPipeline"
    files = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")}
    assert files <= {path.relative_to(sd_folder) for path in sd_folder.rglob("*.*")}
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    assert np.array_equal(paint(loaded), plain)


def test_a_pipeline_of_the_same_parts_for_another_task(pipe: Any) -> None:
    """`from_pipe` gives diffusers' class, which gets the loaded adapter again."""
    attached = pipe._attachment
    other = diffusers.AutoPipelineForImage2Image.from_pipe(pipe)
    assert type(other) is StableDiffusionImg2ImgPipeline
    attach_adapter(other, attached.adapter, attached.encoders, attached.settings)
    arguments = {"image": picture(1), "strength": 0.9}
    assert not np.array_equal(paint(other, **arguments, **SUBJECT), paint(other, **arguments))


def test_an_error_in_a_call_leaves_the_pipeline_as_it_was(pipe: Any) -> None:
    plain = paint(pipe)
    processors = dict(pipe.unet.attn_processors)
    with pytest.raises(ZeroDivisionError):
        paint(pipe, **SUBJECT, callback_on_step_end=lambda *_: 1 / 0)
    assert pipe.unet.attn_processors == processors
    assert np.array_equal(paint(pipe), plain)
