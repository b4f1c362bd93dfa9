from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from torch import Tensor

from model.adapters.visual_attention import Region, VisualCondition
from model.backbone import load_backbone
from model.guidance.masks import grid_at
from model.guidance.settings import InferenceSettings
from model.guidance.subjects import Subject
from model.pipeline import RealCustomPipeline
from model.pipeline_output import RealCustomOutput
from tests.support.attention_records import naive_maps, printed_loop
from tests.support.tiny_models import ENCODERS, RESOLUTION
from tests.support.tiny_pipelines import CROSS, PROMPTS, as_arguments, build, subjects

WORDS = ["cat", "toy"]
TWO_STEPS = InferenceSettings(steps=2, mask_steps=1)


@pytest.fixture(scope="module")
def pipelines(sd_folder: Path, sdxl_folder: Path) -> dict[str, RealCustomPipeline]:
    return {"sd": build(sd_folder), "sdxl": build(sdxl_folder)}


def options(name: str, **changes: Any) -> dict[str, Any]:
    common = {"steps": 2, "guidance_scale": 3.0, "mask_steps": 1, "mask_cross_downscales": CROSS[name]}
    return as_arguments(**{**common, **changes})


def final_latents(pipeline: RealCustomPipeline, *arguments: Any, **changes: Any) -> Tensor:
    kept: list[Tensor] = []

    def keep(_: RealCustomPipeline, step: int, timestep: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        kept.append(state["latents"])
        return state

    pipeline(*arguments, **changes, callback_on_step_end=keep)
    return kept[-1]


def difference(first: RealCustomOutput, second: RealCustomOutput) -> int:
    pairs = zip(first.images, second.images, strict=True)
    return max(int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max()) for a, b in pairs)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_text_to_image_is_that_of_diffusers(
    name: str, pipelines: dict[str, RealCustomPipeline], request: pytest.FixtureRequest
) -> None:
    kind = {"sd": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}[name]
    reference = kind.from_pretrained(request.getfixturevalue(f"{name}_folder"))
    reference.set_progress_bar_config(disable=True)
    latents = torch.randn(2, 4, 16, 16)
    expected = reference(PROMPTS, num_inference_steps=3, guidance_scale=4.0, latents=latents).images
    output = pipelines[name](
        PROMPTS, settings=InferenceSettings(steps=3, mask_steps=1, guidance_scale=4.0), latents=latents
    )
    assert output.masks == [[], []]
    assert difference(output, RealCustomOutput(images=expected, masks=[], timings={})) <= 1


def dense_regions(mask: Tensor, latent: tuple[int, int]) -> dict[int, Region]:
    """M_hat (B, G, G') at every position of every grid."""
    regions = {}
    for downscale in (1, 2, 4, 8):
        weights = F.interpolate(mask[:, None], grid_at(latent, downscale), mode="area").flatten(1)
        regions[downscale] = Region(torch.arange(weights.shape[1]).expand_as(weights), weights[..., None])
    return regions


def straightforward(
    pipeline: RealCustomPipeline,
    name: str,
    subjects: list[list[Subject]],
    guided: list[int],
    subject_steps: range,
    steps: int = 4,
    extrapolated: Mapping[int, float] = MappingProxyType({}),
) -> Tensor:
    """Secs. III-D and III-E, one whole pass after the other, each subject separately: guidance branch with matrices,
    unconditional pass, generation branch. Guidance scale 3, seeds 5 and 6. In the steps `extrapolated` the last guided
    maps are extrapolated by this multiple of their difference from the guided maps before."""
    backbone, largest = pipeline.backbone, {"sd": 1, "sdxl": 2}[name]
    assert pipeline.image_encoders is not None
    assert pipeline.adapter is not None
    grid, count = grid_at((16, 16), largest), len(subjects[0])
    text, empty = backbone.encode_prompt(PROMPTS), backbone.encode_negative_prompt(None, 2)
    positions = [
        [backbone.token_positions(prompt, subject.word or "") for subject in of_prompt]
        for prompt, of_prompt in zip(PROMPTS, subjects, strict=True)
    ]
    counts = [[int((one.scope or 0) * grid[0] * grid[1]) for one in of_prompt] for of_prompt in subjects]
    scheduler = DDIMScheduler.from_config(backbone.scheduler.config)
    scheduler.set_timesteps(steps)
    latents = torch.stack([torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6)])
    before = last = masks = torch.zeros(2, grid[0] * grid[1], count)
    for step, timestep in enumerate(scheduler.timesteps):
        if step in guided:
            before, last = last, naive_maps(backbone, latents, timestep, text, positions, [4], [largest], largest)
        if step in guided or step in extrapolated:
            maps = (last + extrapolated.get(step, 0) * (last - before)).clamp(min=0)
            for row in range(2):
                selected = printed_loop(maps[row], counts[row])
                masks[row] = selected / selected.max(0).values
        visual = []
        for j in range(count):
            pictures = [of_prompt[j].picture for of_prompt in subjects]
            condition = pipeline.adapter(pipeline.image_encoders.encode(pictures))
            regions = dense_regions(masks[..., j].unflatten(1, grid), (16, 16))
            scales = torch.tensor([of_prompt[j].scale or 0.0 for of_prompt in subjects])[:, None, None]
            visual.append(VisualCondition(condition.keys_values, regions, scales))
        unconditional = backbone.predict(latents, timestep, empty)
        attention: dict[str, Any] = {"visual": visual} if step in subject_steps else {}
        conditional = backbone.predict(latents, timestep, text, **attention)
        noise_pred = unconditional + 3.0 * (conditional - unconditional)
        latents = scheduler.step(noise_pred, timestep, latents).prev_sample
    return latents


def on_their_own(scope: float, scale: float) -> list[list[Subject]]:
    return [
        [Subject(picture=picture, word=word, scope=scope, scale=scale)]
        for picture, word in zip(subjects(), WORDS, strict=True)
    ]


@pytest.mark.parametrize("name", ["sd", "sdxl"])
@torch.no_grad()
def test_result_is_that_of_the_straightforward_loop(name: str, pipelines: dict[str, RealCustomPipeline]) -> None:
    expected = straightforward(pipelines[name], name, on_their_own(0.3, 0.8), [0, 1], range(4))
    changes = options(name, steps=4, mask_steps=2, mask_scope=0.3, visual_scale=0.8, seeds=[5, 6])
    got = final_latents(pipelines[name], PROMPTS, subjects(), WORDS, **changes)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def sharpened(pipeline: RealCustomPipeline) -> RealCustomPipeline:
    """The same with attention that is less flat: rounding must not decide which positions a subject gets."""
    for name, parameter in pipeline.backbone.unet.named_parameters():
        if name.endswith("to_q.weight"):
            parameter.mul_(16)
    return pipeline


@torch.no_grad()
def test_fast_and_delayed_masks_are_those_of_the_straightforward_loop(sd_folder: Path) -> None:
    pipeline = sharpened(build(sd_folder))
    by_hand = {5: 0.5 / 3, 6: 0.5 * 2 / 3}
    expected = straightforward(pipeline, "sd", on_their_own(0.25, 1.0), [1, 4], range(1, 7), 8, by_hand)
    changes = options("sd", steps=8, mask_steps=7, mask_every=3, visual_guidance_start=0.1, visual_guidance_end=0.99)
    got = final_latents(pipeline, PROMPTS, subjects(), WORDS, seeds=[5, 6], **changes)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
@torch.no_grad()
def test_multi_subject_is_that_of_the_straightforward_loop(name: str, request: pytest.FixtureRequest) -> None:
    """Many2Many in the first prompt, One2Many in the second one, each subject with its own scope and strength."""
    pipeline = sharpened(build(request.getfixturevalue(f"{name}_folder")))
    first, second, third = subjects(3)
    multi_subject = [
        [
            Subject(picture=first, word="cat", scope=0.3, scale=1.2),
            Subject(picture=second, word="hat", scope=0.25, scale=0.7),
        ],
        [
            Subject(picture=third, word="toy", scope=0.5, scale=0.9),
            Subject(picture=third, word="cat", scope=0.5, scale=0.4),
        ],
    ]
    expected = straightforward(pipeline, name, multi_subject, [0, 1], range(4))
    changes = options(name, steps=4, mask_steps=2, seeds=[5, 6])
    got = final_latents(pipeline, PROMPTS, multi_subject, **changes)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    output = pipeline(PROMPTS, multi_subject, **changes)
    positions = output.masks[0][0][0].numel()
    for masks, of_prompt in zip(output.masks, multi_subject, strict=True):
        for mask in masks:
            taken = (mask > 0).flatten(1)
            assert taken.sum(1).tolist() == [int((one.scope or 0) * positions) for one in of_prompt]
            assert int(taken.sum(0).max()) == 1  # no overlap
            assert mask.flatten(1).amax(1).tolist() == [1, 1]


def test_prompts_with_different_numbers_of_subjects(pipelines: dict[str, RealCustomPipeline]) -> None:
    first, second = subjects()
    cat, hat = Subject(picture=first, word="cat", scope=0.2), Subject(picture=second, word="hat")
    toy = Subject(picture=first, word="toy", scale=0.5)
    together = pipelines["sd"](PROMPTS, [[cat, hat], toy], seeds=[3, 9], **options("sd"))
    alone = [
        pipelines["sd"](PROMPTS[0], [[cat, hat]], seeds=3, **options("sd")),
        pipelines["sd"](PROMPTS[1], toy, seeds=9, **options("sd")),
    ]
    joined = RealCustomOutput(images=[one.images[0] for one in alone], masks=[], timings={})
    assert difference(together, joined) <= 1
    assert [masks[0].shape for masks in together.masks] == [(2, 16, 16), (1, 16, 16)]
    without = pipelines["sd"](PROMPTS, [[cat, hat], toy], seeds=[3, 9], use_mask=False, **options("sd"))
    only = pipelines["sd"](PROMPTS[1], first, seeds=9, use_mask=False, **options("sd", visual_scale=0.5))
    joined = RealCustomOutput(images=[without.images[0], only.images[0]], masks=[], timings={})
    assert difference(without, joined) <= 1


def half(side: str) -> Image.Image:
    """White on the left or right half of a picture."""
    white = np.zeros((RESOLUTION, RESOLUTION), np.uint8)
    white[:, slice(0, 16) if side == "left" else slice(16, 32)] = 255
    return Image.fromarray(white)


def test_masks_of_the_user(pipelines: dict[str, RealCustomPipeline]) -> None:
    first, second = subjects()
    drawn = Subject(picture=first, mask=half("left"))
    found = Subject(picture=second, word="hat", scope=0.4)
    rows: list[int] = []
    hook = pipelines["sd"].backbone.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    try:
        output = pipelines["sd"](PROMPTS[0], drawn, **options("sd"))
        assert rows == [2, 2]  # the guidance branch has nothing to find
        left = torch.zeros(16, 16)
        left[:, :8] = 1
        assert torch.equal(output.masks[0][0][0], left)
        both = pipelines["sd"](PROMPTS[0], [[found, drawn]], **options("sd"))
        assert rows == [2, 2, 1, 2, 2]
    finally:
        hook.remove()
    hat, own = both.masks[0][0]
    assert torch.equal(own, left)
    assert int((hat > 0).sum()) == int(0.4 * 256)
    assert float((hat * left).sum()) == 0


def test_multi_round(pipelines: dict[str, RealCustomPipeline]) -> None:
    """The generated picture is the next reference, with a longer phrase as its word."""
    first = pipelines["sd"]("a cat in a hat", subjects(1)[0], "cat", **options("sd"))
    second = pipelines["sd"]("a cat in a hat", first.images[0], "cat in a hat", **options("sd"))
    assert difference(first, second) > 3
    assert second.masks[0][0].shape == (1, 16, 16)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_end_to_end(name: str, pipelines: dict[str, RealCustomPipeline]) -> None:
    output = pipelines[name](PROMPTS, subjects(), WORDS, **options(name))
    assert [picture.size for picture in output.images] == [(RESOLUTION, RESOLUTION)] * 2
    side = {"sd": 16, "sdxl": 8}[name]
    for masks in output.masks:
        (mask,) = masks
        assert mask.shape == (1, side, side)
        assert int((mask > 0).sum()) == side * side // 4
        assert float(mask.max()) == 1.0
    assert set(output.timings) == {"encode", "guidance", "generation", "decode", "total"}
    parts = sum(seconds for key, seconds in output.timings.items() if key != "total")
    assert 0 < parts <= output.timings["total"] + 1e-6
    without = pipelines[name](PROMPTS, subjects(), use_mask=False, **options(name))
    text = pipelines[name](PROMPTS, **options(name))
    assert difference(output, without) > 3
    assert difference(output, text) > 3


def test_mask_of_ones_is_no_mask(pipelines: dict[str, RealCustomPipeline]) -> None:
    white = Image.new("L", (RESOLUTION, RESOLUTION), 255)
    whole = [Subject(picture=picture, mask=white) for picture in subjects()]
    without = final_latents(pipelines["sd"], PROMPTS, subjects(), use_mask=False, **options("sd"))
    ones = final_latents(pipelines["sd"], PROMPTS, whole, **options("sd"))
    torch.testing.assert_close(ones, without, rtol=1e-4, atol=1e-5)


def test_early_stop_reuses_the_last_mask(pipelines: dict[str, RealCustomPipeline]) -> None:
    pipeline, rows, masks = pipelines["sd"], [], []

    def keep(_: RealCustomPipeline, step: int, timestep: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        masks.append(state["masks"])
        return {}

    hook = pipeline.backbone.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    try:
        changes = options("sd", steps=4, mask_steps=2, callback_on_step_end=keep)
        output = pipeline(PROMPTS, subjects(), WORDS, **changes)
        assert rows == [2, 4, 2, 4, 4, 4]  # guidance rows, then unconditional and generation rows
        assert not torch.equal(masks[0], masks[1])
        assert masks[1] is masks[2] is masks[3]
        assert [len(of_picture) for of_picture in output.masks] == [2, 2]
        assert torch.equal(output.masks[1][1], masks[3][1])
    finally:
        hook.remove()


def test_a_picture_does_not_depend_on_its_batch(pipelines: dict[str, RealCustomPipeline]) -> None:
    together = pipelines["sd"](PROMPTS, subjects(), WORDS, seeds=[3, 9], **options("sd"))
    alone = [
        pipelines["sd"](prompt, subject, word, seeds=seed, **options("sd"))
        for prompt, subject, word, seed in zip(PROMPTS, subjects(), WORDS, (3, 9), strict=True)
    ]
    joined = RealCustomOutput(images=[one.images[0] for one in alone], masks=[], timings={})
    assert difference(together, joined) <= 1


def test_one_subject_and_word_for_all_and_counted_seeds(pipelines: dict[str, RealCustomPipeline]) -> None:
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


def test_callback_may_replace_the_latents(pipelines: dict[str, RealCustomPipeline]) -> None:
    zeros = {"latents": torch.zeros(1, 4, 16, 16)}
    blank = pipelines["sd"]("a cat", settings=TWO_STEPS, callback_on_step_end=lambda *_: zeros)
    decoded = pipelines["sd"].backbone.decode_latents(torch.zeros(1, 4, 16, 16))[0] / 2 + 0.5
    expected = (decoded.clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
    assert np.array_equal(np.asarray(blank.images[0]), expected)


@pytest.mark.parametrize(("name", "size", "grid"), [("sd", (40, 24), (20, 12)), ("sdxl", (36, 20), (9, 5))])
def test_other_shapes(
    name: str, size: tuple[int, int], grid: tuple[int, int], pipelines: dict[str, RealCustomPipeline]
) -> None:
    height, width = size
    output = pipelines[name](PROMPTS, subjects(), WORDS, height=height, width=width, **options(name))
    assert output.images[0].size == (width, height)
    assert output.masks[0][0].shape == (1, *grid)


def test_from_pretrained(sd_folder: Path, tmp_path: Path, pipelines: dict[str, RealCustomPipeline]) -> None:
    built = pipelines["sd"]
    assert built.adapter is not None
    built.adapter.save_pretrained(tmp_path)
    loaded = RealCustomPipeline.from_pretrained(sd_folder, tmp_path, **ENCODERS)
    arguments = PROMPTS, subjects(), WORDS
    assert difference(loaded(*arguments, **options("sd")), built(*arguments, **options("sd"))) == 0
    plain = RealCustomPipeline.from_pretrained(sd_folder)
    assert difference(plain("a cat", settings=TWO_STEPS), built("a cat", settings=TWO_STEPS)) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_half_precision(
    name: str,
    dtype: torch.dtype,
    pipelines: dict[str, RealCustomPipeline],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    adapter = pipelines[name].adapter
    assert adapter is not None
    adapter.save_pretrained(tmp_path)
    folder = request.getfixturevalue(f"{name}_folder")
    loaded = RealCustomPipeline.from_pretrained(folder, tmp_path, **ENCODERS, dtype=dtype)
    output = loaded(PROMPTS, subjects(), WORDS, **options(name))
    assert int((output.masks[0][0] > 0).sum()) == {"sd": 64, "sdxl": 16}[name]
    plain = [
        np.asarray(pipeline("a cat", settings=TWO_STEPS).images[0], float) for pipeline in (loaded, pipelines[name])
    ]
    assert 0 < np.abs(plain[0] - plain[1]).mean() < 4
