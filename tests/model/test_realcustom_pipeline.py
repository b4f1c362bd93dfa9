from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from tiny_models import ENCODERS, RESOLUTION
from torch import Tensor

import model.realcustom_pipeline
from model.adapter import RealCustomPlusAdapter
from model.backbone import Backbone, WordNotInPromptError, load_backbone
from model.image_encoder import ImageEncoders
from model.mask_guidance import guidance_mask, layer_masks, token_indicator
from model.realcustom_pipeline import GenerationError, RealCustomOutput, RealCustomPlusPipeline
from model.visual_attention import AttentionRecorder, VisualCondition

PROMPTS = ["a cat in a hat", "a toy in a cat"]
WORDS = ["cat", "toy"]
CROSS = {"sd": [4], "sdxl": [2]}  # 4 x 4 maps in both: the papers' 16 x 16 and 32 x 32


def subjects(count: int = 2) -> list[Image.Image]:
    values = np.random.default_rng(0).integers(0, 256, (count, 40, 32, 3), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in values]


def build(folder: Path, scheduler: Any = None) -> RealCustomPlusPipeline:
    """With an adapter whose effect is plain to see."""
    options = dict(ENCODERS)
    encoders = ImageEncoders.from_pretrained(options.pop("image_encoders"), folder, **options)
    backbone = load_backbone(folder)
    torch.manual_seed(0)
    adapter = RealCustomPlusAdapter.from_unet(backbone.unet, encoders.width)
    for linear in adapter.to_v_vision.values():
        torch.nn.init.normal_(linear.weight)
    return RealCustomPlusPipeline(backbone, adapter, encoders, scheduler)


@pytest.fixture(scope="module")
def pipelines(sd_folder: Path, sdxl_folder: Path) -> dict[str, RealCustomPlusPipeline]:
    return {"sd": build(sd_folder), "sdxl": build(sdxl_folder)}


def options(name: str, **changes: Any) -> dict[str, Any]:
    return {"steps": 2, "guidance_scale": 3.0, "mask_steps": 1, "mask_cross_downscales": CROSS[name], **changes}


def final_latents(pipeline: RealCustomPlusPipeline, *arguments: Any, **changes: Any) -> Tensor:
    kept: list[Tensor] = []

    def keep(_: RealCustomPlusPipeline, step: int, timestep: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        kept.append(state["latents"])
        return state

    pipeline(*arguments, **changes, callback_on_step_end=keep)
    return kept[-1]


def difference(first: RealCustomOutput, second: RealCustomOutput) -> int:
    pairs = zip(first.images, second.images, strict=True)
    return max(int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max()) for a, b in pairs)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_text_to_image_is_that_of_diffusers(
    name: str, pipelines: dict[str, RealCustomPlusPipeline], request: pytest.FixtureRequest
) -> None:
    kind = {"sd": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}[name]
    reference = kind.from_pretrained(request.getfixturevalue(f"{name}_folder"))
    reference.set_progress_bar_config(disable=True)
    latents = torch.randn(2, 4, 16, 16)
    expected = reference(PROMPTS, num_inference_steps=3, guidance_scale=4.0, latents=latents).images
    painted = pipelines[name](PROMPTS, steps=3, guidance_scale=4.0, latents=latents)
    assert painted.masks == [[], []]
    assert difference(painted, RealCustomOutput(images=expected, masks=[], timings={})) <= 1


def straightforward(pipeline: RealCustomPlusPipeline, name: str, steps: int, mask_steps: int, scale: float) -> Tensor:
    """Sec. III-D, one pass after the other: guidance branch, unconditional pass, generation branch."""
    backbone, latent, largest = pipeline.backbone, (16, 16), {"sd": 1, "sdxl": 2}[name]
    noise = [torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6)]
    text, empty = backbone.encode_prompt(PROMPTS), backbone.encode_negative_prompt(None, 2)
    positions = [backbone.token_positions(prompt, word) for prompt, word in zip(PROMPTS, WORDS, strict=True)]
    indicator = token_indicator(positions, text.hidden.shape[1])
    assert pipeline.image_encoders is not None
    assert pipeline.adapter is not None
    tokens = pipeline.adapter.projector(pipeline.image_encoders.encode(subjects()))
    scheduler = DDIMScheduler.from_config(backbone.scheduler.config)
    scheduler.set_timesteps(steps)
    latents, mask = torch.stack(noise), None
    for step, timestep in enumerate(scheduler.timesteps):
        if step < mask_steps:
            recorder = AttentionRecorder(2, [4], [largest])
            backbone.predict(latents, timestep, text, recorder=recorder)
            mask = guidance_mask(recorder.records, indicator, latent, largest, 0.3)
        assert mask is not None
        pairs = pipeline.adapter.keys_values(tokens)
        condition = VisualCondition(pairs, layer_masks(mask, latent, (1, 2, 4, 8)), scale=0.8)
        unconditional = backbone.predict(latents, timestep, empty)
        conditional = backbone.predict(latents, timestep, text, visual=condition)
        noise_pred = unconditional + scale * (conditional - unconditional)
        latents = scheduler.step(noise_pred, timestep, latents).prev_sample
    return latents


@pytest.mark.parametrize("name", ["sd", "sdxl"])
@torch.no_grad()
def test_result_is_that_of_the_straightforward_loop(name: str, pipelines: dict[str, RealCustomPlusPipeline]) -> None:
    expected = straightforward(pipelines[name], name, steps=4, mask_steps=2, scale=3.0)
    changes = options(name, steps=4, mask_steps=2, mask_scope=0.3, visual_scale=0.8, seeds=[5, 6])
    got = final_latents(pipelines[name], PROMPTS, subjects(), WORDS, **changes)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_end_to_end(name: str, pipelines: dict[str, RealCustomPlusPipeline]) -> None:
    painted = pipelines[name](PROMPTS, subjects(), WORDS, **options(name))
    assert [picture.size for picture in painted.images] == [(RESOLUTION, RESOLUTION)] * 2
    side = {"sd": 16, "sdxl": 8}[name]
    for masks in painted.masks:
        (mask,) = masks
        assert mask.shape == (side, side)
        assert int((mask > 0).sum()) == side * side // 4
        assert float(mask.max()) == 1.0
    assert set(painted.timings) == {"encode", "guidance", "generation", "decode", "total"}
    parts = sum(seconds for key, seconds in painted.timings.items() if key != "total")
    assert 0 < parts <= painted.timings["total"] + 1e-6
    without = pipelines[name](PROMPTS, subjects(), use_mask=False, **options(name))
    text = pipelines[name](PROMPTS, **options(name))
    assert difference(painted, without) > 3
    assert difference(painted, text) > 3


def test_mask_of_ones_is_no_mask(pipelines: dict[str, RealCustomPlusPipeline], monkeypatch: pytest.MonkeyPatch) -> None:
    without = final_latents(pipelines["sd"], PROMPTS, subjects(), use_mask=False, **options("sd"))
    monkeypatch.setattr(model.realcustom_pipeline, "guidance_mask", lambda *_: torch.ones(2, 16, 16))
    ones = final_latents(pipelines["sd"], PROMPTS, subjects(), WORDS, **options("sd"))
    torch.testing.assert_close(ones, without, rtol=1e-4, atol=1e-5)


def test_early_stop_reuses_the_last_mask(pipelines: dict[str, RealCustomPlusPipeline]) -> None:
    pipeline, rows, masks = pipelines["sd"], [], []

    def keep(_: RealCustomPlusPipeline, step: int, timestep: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        masks.append(state["mask"])
        return {}

    hook = pipeline.backbone.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    try:
        changes = options("sd", steps=4, mask_steps=2, callback_on_step_end=keep)
        painted = pipeline(PROMPTS, subjects(), WORDS, **changes)
        assert rows == [4, 2, 4, 2, 4, 4]  # guidance and unconditional rows, then generation; after the stop one pass
        assert not torch.equal(masks[0], masks[1])
        assert masks[1] is masks[2] is masks[3]
        assert [len(of_picture) for of_picture in painted.masks] == [2, 2]
        assert torch.equal(painted.masks[1][1], masks[3][1])
    finally:
        hook.remove()


def test_a_picture_does_not_depend_on_its_batch(pipelines: dict[str, RealCustomPlusPipeline]) -> None:
    together = pipelines["sd"](PROMPTS, subjects(), WORDS, seeds=[3, 9], **options("sd"))
    alone = [
        pipelines["sd"](prompt, subject, word, seeds=seed, **options("sd"))
        for prompt, subject, word, seed in zip(PROMPTS, subjects(), WORDS, (3, 9), strict=True)
    ]
    joined = RealCustomOutput(images=[one.images[0] for one in alone], masks=[], timings={})
    assert difference(together, joined) <= 1


def test_one_subject_and_word_for_all_and_counted_seeds(pipelines: dict[str, RealCustomPlusPipeline]) -> None:
    subject = subjects(1)[0]
    short = pipelines["sd"](PROMPTS, subject, "cat", seeds=4, **options("sd"))
    long = pipelines["sd"](PROMPTS, [subject, subject.copy()], ["cat", "cat"], seeds=[4, 5], **options("sd"))
    assert difference(short, long) <= 1
    assert difference(short, pipelines["sd"](PROMPTS, subject, "cat", seeds=4, **options("sd"))) == 0


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, DPMSolverSinglestepScheduler, DDPMScheduler])
def test_schedulers_are_exchangeable(kind: Any, sd_folder: Path) -> None:
    pipeline = build(sd_folder, kind.from_config(load_backbone(sd_folder).scheduler.config))
    first = pipeline(PROMPTS, subjects(), WORDS, seeds=[1, 2], **options("sd", steps=3))
    alone = pipeline(PROMPTS[1], subjects()[1], WORDS[1], seeds=2, **options("sd", steps=3))
    assert difference(RealCustomOutput(images=first.images[1:], masks=[], timings={}), alone) <= 1


def test_callback_may_replace_the_latents(pipelines: dict[str, RealCustomPlusPipeline]) -> None:
    blank = pipelines["sd"]("a cat", steps=2, callback_on_step_end=lambda *_: {"latents": torch.zeros(1, 4, 16, 16)})
    decoded = pipelines["sd"].backbone.decode_latents(torch.zeros(1, 4, 16, 16))[0] / 2 + 0.5
    expected = (decoded.clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
    assert np.array_equal(np.asarray(blank.images[0]), expected)


@pytest.mark.parametrize(("name", "size", "grid"), [("sd", (40, 24), (20, 12)), ("sdxl", (36, 20), (9, 5))])
def test_other_shapes(
    name: str, size: tuple[int, int], grid: tuple[int, int], pipelines: dict[str, RealCustomPlusPipeline]
) -> None:
    height, width = size
    painted = pipelines[name](PROMPTS, subjects(), WORDS, height=height, width=width, **options(name))
    assert painted.images[0].size == (width, height)
    assert painted.masks[0][0].shape == grid


def test_from_pretrained(sd_folder: Path, tmp_path: Path, pipelines: dict[str, RealCustomPlusPipeline]) -> None:
    built = pipelines["sd"]
    assert built.adapter is not None
    built.adapter.save_pretrained(tmp_path)
    loaded = RealCustomPlusPipeline.from_pretrained(sd_folder, tmp_path, **ENCODERS)
    arguments = PROMPTS, subjects(), WORDS
    assert difference(loaded(*arguments, **options("sd")), built(*arguments, **options("sd"))) == 0
    plain = RealCustomPlusPipeline.from_pretrained(sd_folder)
    assert difference(plain("a cat", steps=2), built("a cat", steps=2)) == 0


def test_half_precision(sd_folder: Path, tmp_path: Path, pipelines: dict[str, RealCustomPlusPipeline]) -> None:
    adapter = pipelines["sd"].adapter
    assert adapter is not None
    adapter.save_pretrained(tmp_path)
    loaded = RealCustomPlusPipeline.from_pretrained(sd_folder, tmp_path, **ENCODERS, dtype=torch.bfloat16)
    painted = loaded(PROMPTS, subjects(), WORDS, **options("sd"))
    assert int((painted.masks[0][0] > 0).sum()) == 64


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"prompt": ""}, GenerationError, "prompt is empty"),
    ({"prompt": []}, GenerationError, "prompt is empty"),
    ({"words": "dog"}, WordNotInPromptError, "whose words are: a, cat, in, hat"),
    ({"words": None}, GenerationError, "name the word"),
    ({"words": ["cat", "hat"]}, GenerationError, "2 words for 1 prompts"),
    ({"subjects": subjects(2)}, GenerationError, "2 subject pictures for 1 prompts"),
    ({"seeds": [1, 2]}, GenerationError, "2 seeds for 1 prompts"),
    ({"steps": 0}, GenerationError, "0 denoising steps"),
    ({"mask_steps": 0}, GenerationError, "mask_steps is 0"),
    ({"mask_scope": 1.5}, GenerationError, "mask scope 1.5 keeps"),
    ({"mask_scope": 0.001}, GenerationError, "keeps 0 of 256 positions"),
    ({"mask_cross_downscales": [16]}, GenerationError, r"downscales \[1, 2, 4, 8\]"),
    ({"height": 33}, GenerationError, "multiples of 2"),
    ({"latents": torch.zeros(1, 4, 8, 8)}, GenerationError, "latents of shape"),
    ({"latents": torch.full((1, 4, 16, 16), torch.nan)}, GenerationError, "NaN"),
    ({"guidance_scale": float("inf")}, GenerationError, "became NaN"),
]


@pytest.mark.parametrize(("changes", "kind", "message"), REFUSED, ids=[next(iter(case[0])) for case in REFUSED])
def test_refusals(
    changes: dict[str, Any], kind: type[Exception], message: str, pipelines: dict[str, RealCustomPlusPipeline]
) -> None:
    request = {"prompt": PROMPTS[0], "subjects": subjects(1), "words": "cat", **options("sd")}
    with pytest.raises(kind, match=message):
        pipelines["sd"](**{**request, **changes})


def test_pipelines_that_do_not_fit_together(sd: Backbone, sd_folder: Path) -> None:
    adapter = RealCustomPlusAdapter.from_unet(sd.unet, 99, head_width=99)
    encoders = ImageEncoders.from_pretrained(["clip"], sd_folder, [[0, 1]], 16, 2)
    with pytest.raises(GenerationError, match="width 99, the encoders give 16"):
        RealCustomPlusPipeline(sd, adapter, encoders)
    with pytest.raises(GenerationError, match="no adapter"):
        RealCustomPlusPipeline(sd)("a cat", subjects(1), use_mask=False)
    pipeline = build(sd_folder)
    assert pipeline.adapter is not None
    pipeline.adapter.detach(pipeline.backbone.unet)
    with pytest.raises(GenerationError, match="detached"):
        pipeline("a cat", subjects(1), "cat")
