from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.adapters.adapter import AdapterError, cross_attention_widths
from model.adapters.adaptive_scoring import ScoreFusion
from model.adapters.realcustom import RealCustomAdapter
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.backbone import Backbone
from tests.support.tiny_models import IMAGE_WIDTH

IMAGE_TOKENS = 10
backbones = pytest.mark.parametrize("name", ["sd", "sdxl"])


def adapter_for(backbone: Backbone, score_fusion: ScoreFusion | None = "scheduled") -> RealCustomAdapter:
    torch.manual_seed(0)
    adapter = RealCustomAdapter.from_unet(backbone.unet, IMAGE_WIDTH, score_fusion)
    for linear in adapter.to_v_vision.values():
        torch.nn.init.normal_(linear.weight)
    return adapter


def latents(batch: int = 2) -> Tensor:
    return torch.randn(batch, 4, 16, 16, generator=torch.Generator().manual_seed(1))


def step(backbone: Backbone, batch: int = 2) -> dict[str, Tensor]:
    """What the adapter is asked at one step."""
    return {
        "image": torch.randn(batch, IMAGE_TOKENS, IMAGE_WIDTH, generator=torch.Generator().manual_seed(2)),
        "text": backbone.encode_prompt(["a cat", "a hat"][:batch]).hidden,
        "latents": latents(batch),
        "alpha_bar": backbone.scheduler.alphas_cumprod[torch.tensor([500] * batch)],
    }


def predict(backbone: Backbone, **attention: object) -> Tensor:
    prompt = backbone.encode_prompt(["a cat", "a hat"])
    with torch.no_grad():
        return backbone.predict(latents(), torch.tensor(500), prompt, **attention)


@backbones
def test_detach_restores_the_unet(name: str, request: pytest.FixtureRequest) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    before, state, former = predict(backbone), backbone.unet.state_dict(), backbone.unet.attn_processors
    adapter = adapter_for(backbone)
    adapter.attach(backbone.unet)
    assert torch.equal(predict(backbone), before)
    with torch.no_grad():
        assert not torch.allclose(predict(backbone, visual=adapter(**step(backbone))), before)
    adapter.detach(backbone.unet)
    assert torch.equal(predict(backbone), before)
    assert backbone.unet.attn_processors == former
    after = backbone.unet.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in state.items())


@backbones
def test_untrained_adapter_changes_nothing(name: str, request: pytest.FixtureRequest) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    adapter, before = RealCustomAdapter.from_unet(backbone.unet, IMAGE_WIDTH), predict(backbone)
    adapter.attach(backbone.unet)
    with torch.no_grad():
        condition = adapter(**step(backbone))
    torch.testing.assert_close(predict(backbone, visual=condition), before, rtol=0, atol=1e-6)


def test_the_condition_is_keys_and_values_of_the_selected_tokens(sd: Backbone) -> None:
    adapter, asked = adapter_for(sd), step(sd)
    assert adapter.scoring is not None
    with torch.no_grad():
        condition = adapter(**asked, gamma_num=0.5)
        tokens = adapter.scoring(**asked, gamma_num=0.5)
    assert condition.keys_values.keys() == cross_attention_widths(sd.unet).keys()
    for layer, (key, value) in condition.keys_values.items():
        weights = [group[layer.replace(".", "_")].weight for group in (adapter.to_k_vision, adapter.to_v_vision)]
        torch.testing.assert_close(key, torch.einsum("bnc,oc->bno", tokens, weights[0]))
        torch.testing.assert_close(value, torch.einsum("bnc,oc->bno", tokens, weights[1]))
        assert key.shape[:2] == (2, 5)


def test_a_fifth_of_the_tokens_is_dropped_by_default(sd: Backbone) -> None:
    condition = adapter_for(sd)(**step(sd))
    assert {key.shape[1] for key, _ in condition.keys_values.values()} == {8}


def test_without_scoring_module_all_tokens_are_read(sd: Backbone) -> None:
    adapter, asked = adapter_for(sd, None), step(sd)
    assert {name.split(".")[0] for name in adapter.state_dict()} == {"to_k_vision", "to_v_vision"}
    expected = adapter.keys_values(asked["image"])
    for layer, pair in adapter(**asked).keys_values.items():
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(pair, expected[layer], strict=True))


@pytest.mark.parametrize("score_fusion", ["scheduled", "textual", "visual", "mean", None])
def test_gradients_reach_the_adapter_only(sd: Backbone, score_fusion: ScoreFusion | None) -> None:
    adapter = adapter_for(sd, score_fusion)
    adapter.attach(sd.unet)
    prompt = sd.encode_prompt(["a cat", "a hat"])
    out = sd.predict(latents(), torch.tensor([10, 900]), prompt, visual=adapter(**step(sd), gamma_num=0.5))
    out.square().mean().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())
    assert all(parameter.grad is None for parameter in sd.unet.parameters())


@pytest.mark.parametrize("score_fusion", ["scheduled", "visual", None])
def test_save_and_load(sd: Backbone, score_fusion: ScoreFusion | None, tmp_path: Path) -> None:
    adapter = adapter_for(sd, score_fusion)
    adapter.save_pretrained(tmp_path)
    loaded = RealCustomAdapter.from_pretrained(tmp_path)
    adapter.attach(sd.unet)
    assert torch.equal(predict(sd, visual=loaded(**step(sd))), predict(sd, visual=adapter(**step(sd))))


def test_both_adapters_share_the_processors(sd: Backbone) -> None:
    """Whichever was attached first: the processors belong to neither."""
    before, first, second = predict(sd), adapter_for(sd), RealCustomPlusAdapter.from_unet(sd.unet, IMAGE_WIDTH)
    second.attach(sd.unet)
    attached = dict(sd.unet.attn_processors)
    first.attach(sd.unet)
    assert sd.unet.attn_processors == attached
    second.detach(sd.unet)
    assert torch.equal(predict(sd), before)


def test_another_base_is_refused(sd: Backbone, sdxl: Backbone) -> None:
    with pytest.raises(AdapterError, match="does not fit this base model"):
        adapter_for(sd).attach(sdxl.unet)
