"""An adapter in diffusers' own pipelines: what acts, what stays as it is, and what is refused."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.controlnet.pipeline_controlnet import MultiControlNetModel
from peft import LoraConfig, get_peft_model_state_dict

from model.adapters.adapter import AdapterError, VisualAdapter
from model.adapters.realcustom import RealCustomAdapter
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.adapters.usage import AdapterUsage
from model.diffusers_pipelines.attachment import attach_adapter, detach_adapter
from model.diffusers_pipelines.supported import PIPELINES
from model.errors import GenerationError, ModelError
from model.guidance.settings import InferenceSettings
from model.guidance.subjects import Subject
from tests.support.tiny_diffusers_pipelines import arguments_of, build_pipeline, picture, widen_for_inpainting
from tests.support.tiny_models import ENCODERS
from tests.support.tiny_pipelines import CROSS, PROMPTS, build, subjects

METHODS = {"realcustom++": RealCustomPlusAdapter, "realcustom": RealCustomAdapter}
#: Both methods, for tables in which the second one only repeats the first.
BOTH = ["realcustom++", pytest.param("realcustom", marks=pytest.mark.slow)]
STEPS = 3


def folder_of(name: str, request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue("sdxl_folder" if "XL" in name else "sd_folder")
    return folder


def settings_for(family: str, **values: Any) -> InferenceSettings:
    return InferenceSettings(steps=STEPS, mask_steps=2, mask_cross_downscales=CROSS[family], **values)


@pytest.fixture(scope="session")
def adapters(
    tmp_path_factory: pytest.TempPathFactory, sd_folder: Path, sdxl_folder: Path
) -> dict[tuple[str, str], Path]:
    """Family and method -> the folder of an adapter, as training writes it."""
    folders = {}
    for family, base in (("sd", sd_folder), ("sdxl", sdxl_folder)):
        for method, kind in METHODS.items():
            folder = tmp_path_factory.mktemp("adapter")
            adapter = build(base, method=kind).adapter
            assert adapter is not None
            adapter.save_pretrained(folder)
            AdapterUsage(image_encoders=ENCODERS, inference=settings_for(family), base_model=None).write(folder)
            folders[family, method] = folder
    return folders


def paint(pipe: Any, prompt: Any = "a cat in a hat", **options: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "np", **options}
    pictures: np.ndarray = pipe(prompt, generator=generator, **options).images
    return pictures


SUBJECT: dict[str, Any] = {"subjects": picture(7), "words": "cat"}


@pytest.fixture
def pipe(sd_folder: Path, adapters: dict[tuple[str, str], Path]) -> Any:
    return attach_adapter(build_pipeline("StableDiffusionPipeline", sd_folder), adapters["sd", "realcustom++"])


# Every pipeline


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


# The pipeline's own arguments


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


# What else is done to pipelines


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


# What is refused


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


def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Path(__file__).resolve().parents[3]
    monkeypatch.chdir(repository)
    blocks = re.findall(r"(?:^    .*\n|^\n)+", (repository / "docs/diffusers.md").read_text(), re.MULTILINE)
    example = textwrap.dedent(next(block for block in blocks if "attach_adapter" in block))
    picture().save(tmp_path / "subject.png")
    names: dict[str, Any] = {}
    exec(example.replace("subject.png", str(tmp_path / "subject.png")), names)
    assert names["picture"].size == (64, 64)


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
