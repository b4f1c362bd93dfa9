from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.adapters.visual_attention import VisualAttentionProcessor
from model.backbone import Backbone, load_backbone
from model.errors import GenerationError
from model.guidance.guidance_branch import GuidanceLayers, GuidanceRecorder, PassEnded, run_guidance_branch
from model.guidance.masks import token_indicator
from tests.support.attention_records import KeepAll, naive_maps

PROMPTS = ["a cat in a hat", "a toy in a cat"]
WORDS = [["cat", "hat"], ["toy", "cat"]]
LARGEST = {"sd": 1, "sdxl": 2}
CROSS = {"sd": 4, "sdxl": 2}  # 4 x 4 maps in both: the papers' 16 x 16 and 32 x 32, relative to the largest grid
ALL = {"sd": [1, 2, 4, 8], "sdxl": [1, 2]}
Recipe = tuple[list[int], list[int]]
RECIPES: dict[str, Recipe] = {  # cross-attention, self-attention; a base has the downscales of `ALL`
    "cross of all resolutions": ([1, 2, 4, 8], []),
    "cross of low resolutions": ([2, 4, 8], []),
    "and self of all resolutions": ([2, 4, 8], [1, 2, 4, 8]),
    "and self of the highest resolution": ([2, 4, 8], [1]),
}
LAST = {
    "sd": "up_blocks.3.attentions.1.transformer_blocks.0.attn1",
    "sdxl": "up_blocks.1.attentions.1.transformer_blocks.0.attn1",
}


@pytest.fixture(params=["sd", "sdxl"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def backbone(name: str, request: pytest.FixtureRequest) -> Backbone:
    folder: Path = request.getfixturevalue(f"{name}_folder")
    backbone = load_backbone(folder)
    RealCustomPlusAdapter.from_unet(backbone.unet, 16).attach(backbone.unet)
    return backbone


def processors(backbone: Backbone) -> list[VisualAttentionProcessor]:
    return list(backbone.unet.attn_processors.values())


def layers(backbone: Backbone, name: str, recipe: Recipe | None = None) -> GuidanceLayers:
    return GuidanceLayers.of(processors(backbone), *(recipe or ([CROSS[name]], [1])))


def positions(backbone: Backbone) -> list[list[list[int]]]:
    return [
        [backbone.token_positions(prompt, word) for word in words] for prompt, words in zip(PROMPTS, WORDS, strict=True)
    ]


def maps(backbone: Backbone, name: str, latents: Tensor, recipe: Recipe | None = None) -> Tensor:
    text = backbone.encode_prompt(PROMPTS)
    indicator = token_indicator(positions(backbone), text.hidden.shape[1])
    recorder = GuidanceRecorder(layers(backbone, name, recipe), indicator, (latents.shape[2], latents.shape[3]))
    run_guidance_branch(backbone, latents, torch.tensor(500), text, recorder)
    return recorder.maps()


@pytest.mark.parametrize("size", [(16, 16), (10, 6)])
@pytest.mark.parametrize("recipe", RECIPES)
@torch.no_grad()
def test_maps_are_those_of_a_whole_pass_with_its_matrices(
    recipe: str, size: tuple[int, int], name: str, backbone: Backbone
) -> None:
    """The four recipes of RealCustom++'s Table V."""
    cross, own = ([downscale for downscale in of_kind if downscale in ALL[name]] for of_kind in RECIPES[recipe])
    latents, text = torch.randn(2, 4, *size), backbone.encode_prompt(PROMPTS)
    crosses_of_latent, self_of_latent = ([LARGEST[name] * at for at in of_kind] for of_kind in (cross, own))
    recipe_of_latent = crosses_of_latent, self_of_latent, LARGEST[name]
    expected = naive_maps(backbone, latents, torch.tensor(500), text, positions(backbone), *recipe_of_latent)
    torch.testing.assert_close(maps(backbone, name, latents, (cross, own)), expected, rtol=1e-5, atol=1e-5)


def test_self_attention_of_a_coarser_grid_by_hand() -> None:
    """A latent of 2 x 2 with a word at its first position; the coarser grid has one position, which sees itself."""
    kinds = {"cross_attention": {"cross": 1}, "self_attention": {"coarse": 2}}
    which = GuidanceLayers(**kinds, largest=1, visual_downscales=(1,))
    recorder = GuidanceRecorder(which, torch.tensor([[[0.0], [1.0]]]), (2, 2))
    query = torch.tensor([100.0, -100.0, -100.0, -100.0]).view(1, 1, 4, 1)
    recorder.record("coarse", torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    with pytest.raises(PassEnded):
        recorder.record("cross", query, torch.tensor([[[[0.0], [1.0]]]]))
    assert recorder.maps().flatten().tolist() == [0.25] * 4


@torch.no_grad()
def test_the_pass_ends_at_the_last_layer(name: str, backbone: Backbone) -> None:
    latents, text, timestep = torch.randn(2, 4, 16, 16), backbone.encode_prompt(PROMPTS), torch.tensor(500)
    before, state = backbone.predict(latents, timestep, text), dict(backbone.unet.__dict__)
    order = list(_keep(backbone, latents).records)
    needed = set(layers(backbone, name).cross_attention) | set(layers(backbone, name).self_attention)
    assert [layer for layer in order if layer in needed][-1] == LAST[name]
    reached: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, at=at: reached.append(at))
        for at, module in backbone.unet.named_modules()
    ]
    maps(backbone, name, latents)
    for hook in hooks:
        hook.remove()
    assert LAST[name].replace("attn1", "norm1") in reached
    assert not {LAST[name], LAST[name].replace("attn1", "attn2"), f"{LAST[name]}.to_v", "conv_out", ""} & set(reached)
    assert torch.equal(backbone.predict(latents, timestep, text), before)
    assert dict(backbone.unet.__dict__) == state


def _keep(backbone: Backbone, latents: Tensor) -> KeepAll:
    kept = KeepAll()
    backbone.predict(latents, torch.tensor(500), backbone.encode_prompt(PROMPTS), recorder=kept)
    return kept


def test_other_errors_inside_the_pass_are_not_swallowed(name: str, backbone: Backbone) -> None:
    with pytest.raises(RuntimeError):
        maps(backbone, name, torch.randn(2, 3, 16, 16))


@torch.no_grad()
def test_queries_and_keys_are_released_once_the_cross_map_is_known(name: str, backbone: Backbone) -> None:
    """By hand: one layer after the other, in the UNet's order."""
    kept, which = _keep(backbone, torch.randn(2, 4, 16, 16)), layers(backbone, name)
    recorder = GuidanceRecorder(which, token_indicator(positions(backbone), 24), (16, 16))
    waiting = []
    for layer, pair in list(kept.records.items()):
        if recorder.wants(layer) and layer != LAST[name]:
            recorder.record(layer, *pair)
            waiting.append(len(recorder._waiting))
    down = [layer for layer in which.self_attention if layer.startswith("down")]
    assert max(waiting) == len(down) < len(which.self_attention)
    assert waiting[-1] == 0


def test_a_grid_without_cross_attention_is_refused(name: str, backbone: Backbone) -> None:
    present = {"sd": r"\[1, 2, 4, 8\]", "sdxl": r"\[1, 2\]"}[name]
    with pytest.raises(GenerationError, match="needs cross-attention of at least one"):
        GuidanceLayers.of(processors(backbone), [])
    for wrong in ([16], [3, 1]):
        with pytest.raises(GenerationError, match=f"has cross-attention at downscales {present}"):
            GuidanceLayers.of(processors(backbone), wrong)
    with pytest.raises(
        GenerationError, match=rf"mask_self_downscales \[1, 16\]: .* self-attention at downscales {present}"
    ):
        GuidanceLayers.of(processors(backbone), [CROSS[name]], [1, 16])
