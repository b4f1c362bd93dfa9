"""Offloading to the CPU. Without an accelerator the hooks are tested with the CPU instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from model.adapters.realcustom import RealCustomAdapter
from model.errors import ModelError
from model.offload import accelerator, offload
from tests.support.tiny_pipelines import CROSS, PROMPTS, as_arguments, build, subjects


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_a_machine_without_accelerator_is_refused(sd_folder: Path) -> None:
    with pytest.raises(ModelError, match="accelerator"):
        build(sd_folder).enable_model_cpu_offload()


class Noted(nn.Linear):
    """Notes when it is moved, and where to."""

    def __init__(self, name: str, moves: list[str]) -> None:
        super().__init__(1, 1)
        self.name, self.moves = name, moves

    def to(self, device: Any) -> Noted:  # type: ignore[override]
        """Moves to `meta`, which every machine has, and returns empty weights."""
        self.moves.append(f"{self.name} to {torch.device(device).type}")
        return self.to_empty(device=device)


def test_one_model_at_a_time() -> None:
    moves: list[str] = []
    first, second = (Noted(name, moves) for name in ("first", "second"))
    hooks = offload([first, second], torch.device("meta"))
    moves.clear()
    seen = torch.ones(1, 1, device="meta")
    for model in (first, second, second):
        assert model(seen).device.type == "meta"
    assert moves == ["first to meta", "first to cpu", "second to meta"]
    hooks[1].offload()
    assert moves[3:] == ["second to cpu"]
    moves.clear()
    offload([second], torch.device("meta"))  # again: the old hooks are gone
    second(seen)
    assert [move for move in moves if move.startswith("first")] == []


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_pictures_are_the_same_with_offload(name: str, request: pytest.FixtureRequest) -> None:
    pipeline = build(request.getfixturevalue(f"{name}_folder"))
    arguments = as_arguments(steps=2, mask_steps=1, mask_cross_downscales=CROSS[name])
    expected = pipeline(PROMPTS, subjects(), ["cat", "toy"], **arguments).images
    pipeline.enable_model_cpu_offload(torch.device("cpu"))
    assert pipeline.backbone.device == torch.device("cpu")
    got = pipeline(PROMPTS, subjects(), ["cat", "toy"], **arguments).images
    assert all(np.array_equal(np.asarray(one), np.asarray(other)) for one, other in zip(got, expected, strict=True))
    base = pipeline.backbone
    order = [pipeline.image_encoders, *base.text_encoders, base.unet, base.vae]
    chain = [hook.model for hook in pipeline._offloaded]
    assert all(one is other for one, other in zip(chain, order, strict=True))
    assert not hasattr(pipeline.adapter, "_hf_hook")


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("method", [None, RealCustomAdapter])
def test_every_model_is_back_on_the_cpu_after_a_picture(method: Any, sd_folder: Path) -> None:
    pipeline = build(sd_folder) if method is None else build(sd_folder, method=method)
    pipeline.enable_model_cpu_offload()
    assert pipeline.backbone.device == accelerator()
    pipeline(PROMPTS, subjects(), ["cat", "toy"], **as_arguments(steps=2, mask_cross_downscales=[4]))
    assert {next(hook.model.parameters()).device.type for hook in pipeline._offloaded} == {"cpu"}
