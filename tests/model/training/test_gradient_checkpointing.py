"""The frozen UNet with and without gradient checkpointing: the same numbers from fewer kept activations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.adapters.visual_attention import VisualAttentionProcessor
from model.guidance.guidance_branch import GuidanceLayers, GuidanceRecorder, run_guidance_branch
from model.guidance.masks import token_indicator
from model.methods.names import MethodName
from model.training.adapter_loss import AdapterModule
from tests.support.adapter_tasks import make_task, randomize_values
from tests.support.attention_records import KeepAll

pytestmark = pytest.mark.slow


def twins(folder: Path, method: MethodName = "realcustom++", half: torch.dtype | None = None) -> list[AdapterModule]:
    """Two modules of the same weights; the second one's UNet does not keep its activations."""
    modules = [make_task(folder, method=method, half=half, gradient_checkpointing=on).module() for on in (False, True)]
    with torch.no_grad():
        randomize_values(modules[0])
    modules[1].load_state_dict(modules[0].state_dict())
    assert [module.frozen.backbone.unet.is_gradient_checkpointing for module in modules] == [False, True]
    return modules


def bytes_kept(module: AdapterModule, batch: dict[str, Tensor]) -> int:
    """What a forward pass keeps for the backward pass, each storage once, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    weights |= {parameter.untyped_storage().data_ptr() for parameter in module.frozen.backbone.unet.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(batch)["loss"]
    return sum(kept.values())


@pytest.mark.parametrize("half", [None, torch.bfloat16])
@pytest.mark.parametrize("method", ["realcustom++", "realcustom"])
@pytest.mark.parametrize("kind", ["sd_folder", "sdxl_folder"])
def test_gradients_are_the_same(
    kind: str, method: MethodName, half: torch.dtype | None, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(kind)
    modules = twins(folder, method, half)
    batch = make_task(folder).batch(0, 0, 1)
    losses = []
    for module in modules:
        with torch.autocast("cpu", torch.bfloat16, enabled=half is not None):
            losses.append(module(batch)["loss"])
        losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0])
    for (name, expected), found in zip(modules[0].named_parameters(), modules[1].parameters(), strict=True):
        assert expected.grad is not None, name
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_fewer_activations_are_kept(sd_folder: Path) -> None:
    batch = make_task(sd_folder).batch(1, 0, 1)
    kept, kept_with_checkpoints = (bytes_kept(module, batch) for module in twins(sd_folder))
    assert kept_with_checkpoints < 0.6 * kept


def test_recording_with_gradient_checkpointing(sd_folder: Path) -> None:
    """A whole pass with gradients whose backward pass computes the layers again, and one that ends early."""
    records, maps = [], []
    batch = make_task(sd_folder).batch(1, 0, 1)
    for module in twins(sd_folder):
        backbone, timestep = module.frozen.backbone, torch.tensor(500)
        prompt = backbone.encode_prompt(["a cat in"] * len(batch["latents"]))
        condition, kept = module.adapter(module.frozen.encoders.features(batch["reference"])), KeepAll()
        backbone.predict(batch["latents"], timestep, prompt, visual=condition, recorder=kept).square().mean().backward()
        records.append(kept.records)
        processors = [p for p in backbone.unet.attn_processors.values() if isinstance(p, VisualAttentionProcessor)]
        words = token_indicator([[backbone.token_positions("a cat in", "cat")]] * len(batch["latents"]), 24)
        layers = GuidanceLayers.of(processors, [1, 2, 4], [1])
        recorder = GuidanceRecorder(layers, words, (16, 16))
        run_guidance_branch(backbone, batch["latents"], timestep, prompt, recorder)
        maps.append(recorder.maps())
    assert records[0].keys() == records[1].keys()
    for layer, pair in records[0].items():
        torch.testing.assert_close(records[1][layer], pair)
    torch.testing.assert_close(maps[1], maps[0], rtol=0, atol=0)
