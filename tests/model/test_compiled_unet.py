"""`torch.compile` of the UNet with our processors attached: one graph each, with the same result.

The backend runs the graphs as they are, so that no compiler is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.adapters.visual_attention import VisualCondition
from model.dci.integration import MASK_SCALES, BranchTokens, DualBranchIntegration
from model.guidance.guidance_branch import GuidanceLayers, GuidanceRecorder, PassEnded
from model.guidance.masks import layer_regions, token_indicator

pytestmark = pytest.mark.slow

LATENT = (8, 8)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(8,),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    unet.eval().requires_grad_(False)
    RealCustomPlusAdapter.from_unet(unet, 64).attach(unet)
    return unet


def conditions(unet: UNet2DConditionModel) -> list[VisualCondition]:
    """Two references, one of them inside a mask; they act in the last of two rows."""
    torch.manual_seed(2)
    layers = list(GuidanceLayers.of(unet.attn_processors.values(), [1]).cross_attention)
    mask = torch.zeros(1, *LATENT)
    mask[:, 2:5, 3:6] = 0.5
    inside, everywhere = ({layer: (torch.randn(1, 6, 8), torch.randn(1, 6, 8)) for layer in layers} for _ in range(2))
    return [VisualCondition(inside, layer_regions(mask, LATENT, [1])), VisualCondition(everywhere, scale=0.3)]


def recorder(unet: UNet2DConditionModel, *, ends_pass: bool) -> GuidanceRecorder:
    layers = GuidanceLayers.of(unet.attn_processors.values(), [1])
    rows = [[[1, 2]], [[3]]] if ends_pass else [[[1, 2]]]
    return GuidanceRecorder(layers, token_indicator(rows, 5), LATENT, ends_pass=ends_pass)


def integration() -> DualBranchIntegration:
    """The auxiliary branch in the first of two rows, the concept branch in the second one."""
    own = torch.tensor([[False, True, True, True, False]])
    one, others = torch.tensor([[2], [1]]) == torch.arange(5)
    layers = {"down_blocks.0.attentions.0.transformer_blocks.0.attn2": 1}
    scales = MASK_SCALES["authors"]
    return DualBranchIntegration(BranchTokens(own, one[None]), BranchTokens(own, others[None]), layers, 1.0, scales)


KINDS: dict[str, Callable[[UNet2DConditionModel], dict[str, Any]]] = {
    "the base model": lambda unet: {},
    "generation branch": lambda unet: {"visual": conditions(unet)},
    "T2I branch of RealCustom": lambda unet: {"recorder": recorder(unet, ends_pass=False)},
    "guidance branch": lambda unet: {"recorder": recorder(unet, ends_pass=True)},
    "DCI's branches": lambda unet: {"integration": integration()},
}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_one_graph_with_the_same_result(kind: str, unet: UNet2DConditionModel) -> None:
    torch.manual_seed(1)
    inputs = torch.randn(2, 4, *LATENT), torch.tensor(500), torch.randn(2, 5, 8)
    attention, again = KINDS[kind](unet), KINDS[kind](unet)
    torch.compiler.reset()
    compiled: Any = torch.compile(unet, backend="eager", fullgraph=True)
    got = compiled(*inputs, cross_attention_kwargs=attention).sample
    if kind == "guidance branch":
        with pytest.raises(PassEnded):
            unet(*inputs, cross_attention_kwargs=again)
    else:
        assert torch.equal(got, unet(*inputs, cross_attention_kwargs=again).sample)
    if "recorder" in attention:
        assert torch.equal(attention["recorder"].maps(), again["recorder"].maps())
    if "integration" in attention:
        assert torch.equal(attention["integration"].masks[1][0], again["integration"].masks[1][0])
