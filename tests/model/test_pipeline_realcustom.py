"""RealCustom's inference (Sec. 3.3) by the one pipeline, against a straightforward loop over its two branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from model.adapters.adapter import AdapterError
from model.adapters.realcustom import RealCustomAdapter
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.adapters.visual_attention import Region, VisualCondition
from model.backbone import Backbone, load_backbone
from model.errors import GenerationError
from model.guidance.denoising import guide
from model.guidance.masks import grid_at
from model.guidance.subjects import Subject
from model.methods.realcustom import guide_by_text_and_image
from model.methods.registry import load_adapter
from model.pictures.crops import square_crop
from model.pictures.tensors import to_tensor
from model.pipeline import RealCustomPipeline
from tests.support.attention_records import naive_maps, printed_loop
from tests.support.tiny_models import ENCODERS, RESOLUTION
from tests.support.tiny_pipelines import PROMPTS, as_arguments, build, subjects

LARGEST = {"sd": 1, "sdxl": 2}
ALL = {"sd": [1, 2, 4, 8], "sdxl": [1, 2]}  # resolutions of cross-attention, as downscales of the largest grid
names = pytest.mark.parametrize("name", ["sd", "sdxl"])


def options(name: str, **changes: Any) -> dict[str, Any]:
    recipe = {"mask_cross_downscales": ALL[name], "mask_self_downscales": []}
    scales = {"guidance_scale": 3.0, "image_guidance_scale": 4.0}
    return as_arguments(**{"steps": 4, "mask_steps": 4, "seeds": [5, 6], **recipe, **scales, **changes})


@pytest.fixture
def name() -> str:
    return "sd"


@pytest.fixture
def pipeline(name: str, request: pytest.FixtureRequest) -> RealCustomPipeline:
    """Attention that is not flat, a mild effect: rounding must not decide on positions, nor grow over the steps."""
    pipeline = build(request.getfixturevalue(f"{name}_folder"), method=RealCustomAdapter)
    assert pipeline.adapter is not None
    with torch.no_grad():
        for weight in pipeline.adapter.to_v_vision.parameters():
            weight.mul_(0.1)
        for parameter_name, parameter in pipeline.backbone.unet.named_parameters():
            if parameter_name.endswith("to_q.weight"):
                parameter.mul_(16)
    return pipeline


def one_each(scope: float = 0.25, scale: float = 1.0) -> list[list[Subject]]:
    return [
        [Subject(picture=picture, word=word, scope=scope, scale=scale)]
        for picture, word in zip(subjects(), ("cat", "toy"), strict=True)
    ]


def two_each() -> list[list[Subject]]:
    """Many2Many in the first prompt, One2Many in the second one."""
    first, second, third = subjects(3)
    return [
        [Subject(picture=first, word="cat", scope=0.3, scale=1.2), Subject(picture=second, word="hat", scope=0.25)],
        [Subject(picture=third, word="toy", scope=0.5, scale=0.9), Subject(picture=third, word="cat", scope=0.5)],
    ]


def final_latents(pipeline: RealCustomPipeline, *arguments: Any, **changes: Any) -> Tensor:
    kept: list[Tensor] = []

    def keep(_: RealCustomPipeline, step: int, timestep: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        kept.append(state["latents"])
        return {}

    pipeline(*arguments, **changes, callback_on_step_end=keep)
    return kept[-1]


def straightforward(
    pipeline: RealCustomPipeline,
    name: str,
    given: list[list[Subject]],
    guided: Sequence[int],
    extrapolated: Mapping[int, float] = MappingProxyType({}),
    acting: Sequence[int] = range(4),
    steps: int = 4,
) -> Tensor:
    """Sec. 3.3, one whole pass after the other: T2I branch with its matrices, scores, TI2I branch, Eq. 13.

    In the steps `extrapolated` the last guided maps go on by so many times what they differ from the guided ones
    before. One2Many's subjects share a reference, which is scored inside both masks.
    """
    backbone, adapter, encoders, largest = pipeline.backbone, pipeline.adapter, pipeline.image_encoders, LARGEST[name]
    assert adapter is not None
    assert encoders is not None
    grid, count = grid_at((16, 16), largest), len(given[0])
    crosses = [downscale * largest for downscale in ALL[name]]
    text, empty = backbone.encode_prompt(PROMPTS), backbone.encode_negative_prompt(None, 2)
    positions = [
        [backbone.token_positions(prompt, one.word or "") for one in of_prompt]
        for prompt, of_prompt in zip(PROMPTS, given, strict=True)
    ]
    scheduler = DDIMScheduler.from_config(backbone.scheduler.config)
    scheduler.set_timesteps(steps)
    z = torch.stack([torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6)])
    before = last = masks = torch.zeros(2, grid[0] * grid[1], count)
    for step, timestep in enumerate(scheduler.timesteps):
        eps_0, eps_t = backbone.predict(z, timestep, empty), backbone.predict(z, timestep, text)
        eps_ti = eps_t
        if step in guided:
            before, last = last, naive_maps(backbone, z, timestep, text, positions, crosses, [], largest)
        if step in guided or step in extrapolated:
            maps = (last + extrapolated.get(step, 0) * (last - before)).clamp(min=0)
            for row, of_prompt in enumerate(given):
                selected = printed_loop(maps[row], [int((one.scope or 0) * len(maps[row])) for one in of_prompt])
                masks[row] = selected / selected.max(0).values
        if step in acting:
            visual = []
            for j in range(count):
                pictures = [of_prompt[j].picture for of_prompt in given]
                squares = [
                    square_crop(picture, 0.5, 0.5, encoders.reference_size * encoders.tiles) for picture in pictures
                ]
                rows = []
                for row, of_prompt in enumerate(given):
                    sharing = [k for k, one in enumerate(of_prompt) if one.picture is of_prompt[j].picture]
                    inside = masks[row][:, sharing].sum(-1).view(1, 1, *grid)
                    rows.append(z[row : row + 1] * F.interpolate(inside, (16, 16), mode="bilinear"))
                alpha_bar = scheduler.alphas_cumprod[timestep].repeat(2)
                condition = adapter(encoders.tokens(to_tensor(squares)), text.hidden, torch.cat(rows), alpha_bar, 0.8)
                mask = masks[..., j].unflatten(1, grid)[:, None]
                regions = {}
                for downscale in (1, 2, 4, 8):
                    weights = F.interpolate(mask, grid_at((16, 16), downscale), mode="area").flatten(1)
                    everywhere = torch.arange(weights.shape[1]).expand_as(weights)
                    regions[downscale] = Region(everywhere, weights[..., None])
                scales = torch.tensor([of_prompt[j].scale or 1.0 for of_prompt in given])[:, None, None]
                visual.append(VisualCondition(condition.keys_values, regions, scales))
            eps_ti = backbone.predict(z, timestep, text, visual=visual)
        noise = eps_0 + 3.0 * (eps_t - eps_0) + 4.0 * (eps_ti - eps_t)
        z = scheduler.step(noise, timestep, z).prev_sample
    return z


@names
@torch.no_grad()
def test_result_is_that_of_the_straightforward_loop(name: str, pipeline: RealCustomPipeline) -> None:
    expected = straightforward(pipeline, name, one_each(0.3, 0.8), guided=range(4))
    arguments = PROMPTS, subjects(), ["cat", "toy"]
    got = final_latents(pipeline, *arguments, **options(name, mask_scope=0.3, visual_scale=0.8))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got, final_latents(pipeline, PROMPTS, **options(name)), atol=1e-2)


@names
@torch.no_grad()
def test_multi_subject_is_that_of_the_straightforward_loop(name: str, pipeline: RealCustomPipeline) -> None:
    expected = straightforward(pipeline, name, two_each(), guided=range(4))
    torch.testing.assert_close(
        final_latents(pipeline, PROMPTS, two_each(), **options(name)), expected, rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_early_stop_fast_masks_and_delay_are_those_of_the_straightforward_loop(
    pipeline: RealCustomPipeline,
) -> None:
    guided, by_hand = [0, 2, 4], {3: 0.5 / 2}
    expected = straightforward(pipeline, "sd", one_each(), guided, by_hand, acting=range(5), steps=6)
    changes = options("sd", steps=6, mask_steps=5, mask_every=2, visual_guidance_end=0.84)
    got = final_latents(pipeline, PROMPTS, subjects(), ["cat", "toy"], **changes)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_passes_share_a_batch(pipeline: RealCustomPipeline) -> None:
    rows: list[int] = []
    hook = pipeline.backbone.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    try:
        output = pipeline(PROMPTS, subjects(), ["cat", "toy"], **options("sd", mask_steps=2))
    finally:
        hook.remove()
    assert rows == [4, 2, 4, 2, 6, 6]  # unconditional and T2I rows, then TI2I rows; all three while masks are kept
    assert [len(masks) for masks in output.masks] == [2, 2]
    assert int((output.masks[0][0] > 0).sum()) == 64
    assert min(output.timings.values()) > 0


def test_a_binary_mask_is_where_the_other_one_is_not_zero(pipeline: RealCustomPipeline) -> None:
    weighted, binary = (
        pipeline(PROMPTS, subjects(), ["cat", "toy"], **options("sd", mask_binary=chosen)) for chosen in (False, True)
    )
    first = weighted.masks[0][0]
    assert torch.equal(binary.masks[0][0], (first > 0).float())
    assert len(first.unique()) > 2


def test_equation_13_by_hand() -> None:
    eps_0, eps_t, eps_ti = torch.tensor([1.0, 3.0, 4.0])
    assert guide_by_text_and_image(eps_0, eps_t, eps_ti, 7.5, 12.5).item() == 1 + 7.5 * 2 + 12.5 * 1
    assert guide_by_text_and_image(eps_0, eps_t, eps_ti, 5.0, 5.0).item() == guide(eps_0, eps_ti, 5.0).item() == 16


def test_mask_of_ones_is_no_mask(pipeline: RealCustomPipeline) -> None:
    white = Image.new("L", (RESOLUTION, RESOLUTION), 255)
    whole = [Subject(picture=picture, mask=white) for picture in subjects()]
    without = final_latents(pipeline, PROMPTS, subjects(), use_mask=False, **options("sd"))
    ones = final_latents(pipeline, PROMPTS, whole, **options("sd"))
    torch.testing.assert_close(ones, without, rtol=1e-4, atol=1e-5)


def test_the_scores_depend_on_the_masked_latents_only(pipeline: RealCustomPipeline) -> None:
    """With one image token kept, latents outside a given mask do not change which one it is."""
    half = np.zeros((RESOLUTION, RESOLUTION), np.uint8)
    half[:, : RESOLUTION // 2] = 255
    drawn = Subject(picture=subjects(1)[0], mask=Image.fromarray(half))
    latents = torch.randn(1, 4, 16, 16)
    other = torch.cat([latents[..., :8], torch.randn(1, 4, 16, 8)], dim=-1)
    seen: list[Tensor] = []
    assert isinstance(pipeline.adapter, RealCustomAdapter)
    assert pipeline.adapter.scoring is not None
    hook = pipeline.adapter.scoring.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    try:
        for noise in (latents, other):
            pipeline(PROMPTS[0], drawn, latents=noise, **options("sd", steps=1, seeds=0))
    finally:
        hook.remove()
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0][..., :8], latents[..., :8])
    assert not seen[0][..., 8:].any()


def test_a_picture_does_not_depend_on_its_batch_nor_on_the_scheduler_being_ddim(sd_folder: Path) -> None:
    scheduler = EulerDiscreteScheduler.from_config(load_backbone(sd_folder).scheduler.config)
    pipeline = build(sd_folder, scheduler, RealCustomAdapter)
    together = pipeline(PROMPTS, subjects(), ["cat", "toy"], **options("sd"))
    alone = pipeline(PROMPTS[1], subjects()[1], "toy", **options("sd", seeds=6))
    pixels = [np.asarray(picture, int) for picture in (together.images[1], alone.images[0])]
    assert np.abs(pixels[0] - pixels[1]).max() <= 1


@pytest.mark.parametrize("gamma_num", [0.0, 1.5, float("nan"), 0.01])
def test_a_share_of_the_tokens_that_cannot_be_kept_is_refused(gamma_num: float, pipeline: RealCustomPipeline) -> None:
    with pytest.raises(ValueError, match="gamma_num"):
        pipeline(PROMPTS, subjects(), ["cat", "toy"], **options("sd", gamma_num=gamma_num))


def test_a_saved_adapter_of_any_method_gives_the_same_pictures(
    pipeline: RealCustomPipeline, sd_folder: Path, tmp_path: Path
) -> None:
    plus = build(sd_folder)
    for folder, built in (("realcustom", build(sd_folder, method=RealCustomAdapter)), ("realcustom++", plus)):
        assert built.adapter is not None
        built.adapter.save_pretrained(tmp_path / folder)
        loaded = RealCustomPipeline.from_pretrained(sd_folder, tmp_path / folder, **ENCODERS)
        assert type(loaded.adapter) is type(built.adapter)
        pictures = [one(PROMPTS, subjects(), ["cat", "toy"], **options("sd")).images for one in (built, loaded)]
        assert all(np.array_equal(*pair) for pair in zip(*pictures, strict=True))


def test_other_folders_are_no_adapters(sd: Backbone, sd_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"holds a UNet2DConditionModel; an adapter is one of RealCustomAdapter, "):
        load_adapter(sd_folder, subfolder="unet")
    with pytest.raises(OSError, match="config"):
        load_adapter(tmp_path)
    RealCustomPlusAdapter.from_unet(sd.unet, 16).save_pretrained(tmp_path)
    assert isinstance(load_adapter(tmp_path), RealCustomPlusAdapter)


def test_half_precision(sd_folder: Path, tmp_path: Path) -> None:
    built = build(sd_folder, method=RealCustomAdapter)
    assert built.adapter is not None
    built.adapter.save_pretrained(tmp_path)
    loaded = RealCustomPipeline.from_pretrained(sd_folder, tmp_path, **ENCODERS, dtype=torch.bfloat16)
    output = loaded(PROMPTS, subjects(), ["cat", "toy"], **options("sd"))
    assert int((output.masks[0][0] > 0).sum()) == 64


def test_detaching_leaves_the_base_model(pipeline: RealCustomPipeline) -> None:
    backbone, text = pipeline.backbone, pipeline.backbone.encode_prompt(PROMPTS)
    assert pipeline.adapter is not None
    pipeline.adapter.detach(backbone.unet)
    latents = torch.randn(2, 4, 16, 16)
    with torch.no_grad():
        before = backbone.predict(latents, torch.tensor(500), text)
        pipeline.adapter.attach(backbone.unet)
        pipeline(PROMPTS, subjects(), ["cat", "toy"], **options("sd"))
        assert torch.equal(backbone.predict(latents, torch.tensor(500), text), before)
        pipeline.adapter.detach(backbone.unet)
        assert torch.equal(backbone.predict(latents, torch.tensor(500), text), before)
    with pytest.raises(GenerationError, match="detached"):
        pipeline(PROMPTS, subjects(), ["cat", "toy"], **options("sd"))
