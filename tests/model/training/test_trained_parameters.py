"""Gradients reach exactly what the papers train (RealCustom Sec. 3.2, RealCustom++ Sec. III-C), by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.training.adapter_loss import AdapterModule
from tests.support.adapter_tasks import make_task, randomize_values

pytestmark = pytest.mark.slow

ATTENTION = ["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "to_q.weight", "to_k.weight", "to_v.weight"]
MLP = [f"{layer}.{part}" for layer in (0, 2, 4, 5) for part in ("weight", "bias")]  # three linear layers, a norm
SCORE_NET = [f"{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")]

CROSS_LAYER = {"projector.shallow_attention": ATTENTION, "projector.shallow_mlp": MLP}  # Eqs. 5-6
CROSS_SCALE = {"projector.high_attention": ATTENTION, "projector.high_mlp": MLP}  # Eqs. 7-8
DEEP = {"projector.deep_mlp": ["weight", "bias"]}
TEXTUAL = {"scoring.textual_pooling": ["weight"], "scoring.textual_score_net": SCORE_NET}
VISUAL = {"scoring.visual_pooling": ["weight"], "scoring.visual_score_net": SCORE_NET}

#: A constant beside all scores: the softmax over the image tokens takes it out again.
WITHOUT_EFFECT = {"scoring.textual_score_net.2.bias", "scoring.visual_score_net.2.bias"}

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, list[str]]]] = {
    "RealCustom++": ({}, {**CROSS_LAYER, **CROSS_SCALE, **DEEP}),
    "RealCustom++, Table VIII 1": ({"cross_layer": None, "cross_scale": None}, DEEP),
    "RealCustom++, Table VIII 2": ({"cross_scale": None}, {**CROSS_LAYER, **DEEP}),
    "RealCustom++, high resolution alone": ({"cross_layer": None}, {**CROSS_SCALE, **DEEP}),
    "RealCustom++, Table IX": (
        {"cross_layer": "add", "cross_scale": "concat"},
        {**CROSS_LAYER, **CROSS_SCALE, **DEEP},
    ),
    "RealCustom": ({"method": "realcustom"}, {**TEXTUAL, **VISUAL}),
    "RealCustom, textual score": ({"method": "realcustom", "score_fusion": "textual"}, TEXTUAL),
    "RealCustom, visual score": ({"method": "realcustom", "score_fusion": "visual"}, VISUAL),
    "RealCustom, mean score": ({"method": "realcustom", "score_fusion": "mean"}, {**TEXTUAL, **VISUAL}),
    "RealCustom, no score": ({"method": "realcustom", "score_fusion": None}, {}),
}


def keys_and_values(module: AdapterModule) -> set[str]:
    """W_Ki and W_Vi of every cross-attention layer, which diffusers calls attn2."""
    layers = [name for name, _ in module.frozen.backbone.unet.named_modules() if name.endswith(".attn2")]
    assert len(layers) >= 6
    return {f"{part}.{layer.replace('.', '_')}.weight" for layer in layers for part in ("to_k_vision", "to_v_vision")}


def gradients(module: AdapterModule) -> dict[str, Tensor | None]:
    """Of all parameters that take part in a step, by model and name."""
    backbone = module.frozen.backbone
    models = {"adapter": module.adapter, "unet": backbone.unet, "vae": backbone.vae, "clip": module.frozen.encoders}
    models |= {f"text_encoder_{number}": encoder for number, encoder in enumerate(backbone.text_encoders)}
    return {
        f"{model}.{name}": parameter.grad
        for model, found in models.items()
        for name, parameter in found.named_parameters()
    }


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["sd_folder", "sdxl_folder"])
def test_gradients_reach_what_the_papers_train(kind: str, variant: str, request: pytest.FixtureRequest) -> None:
    settings, modules = VARIANTS[variant]
    task = make_task(request.getfixturevalue(kind), drop_text=0.0, drop_image=0.0, drop_both=0.0, **settings)
    module = task.module()
    with torch.no_grad():
        randomize_values(module)  # while V_i is zero, nothing before it has a gradient
    module(task.batch(1, 0, 1))["loss"].backward()
    expected = {f"{name}.{part}" for name, parts in modules.items() for part in parts} | keys_and_values(module)
    assert {name for name, _ in module.named_parameters()} == {f"adapter.{name}" for name in expected}
    found = gradients(module)
    assert {name for name, gradient in found.items() if gradient is not None} == {f"adapter.{n}" for n in expected}
    for name in expected:
        gradient = found[f"adapter.{name}"]
        assert gradient is not None
        assert (gradient.abs().max() > 1e-7) == (name not in WITHOUT_EFFECT), name


@pytest.mark.parametrize("method", ["realcustom++", "realcustom"])
def test_the_first_step_moves_the_visual_values_alone(method: str, sd_folder: Path) -> None:
    """They start at zero, so that training starts from the base model; the rest follows from the second step on."""
    task = make_task(sd_folder, method=method)
    module = task.module()
    module(task.batch(1, 0, 1))["loss"].backward()
    found = gradients(module)
    moved = {name for name, gradient in found.items() if gradient is not None and gradient.abs().max() > 0}
    assert moved == {f"adapter.{name}" for name in keys_and_values(module) if name.startswith("to_v_vision")}
