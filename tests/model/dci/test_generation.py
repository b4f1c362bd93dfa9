"""DCI in the pipeline, on backbones in the shapes of SD-1.5 and SDXL."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)
from torch import Tensor

from model.adapters.realcustom import RealCustomAdapter
from model.adapters.visual_attention import attached_processors
from model.backbone import Backbone, load_backbone
from model.dci.auxiliary_branch import integration_layers
from model.dci.figures import aggregation_mask_pictures
from model.dci.integration import MASK_SCALES
from model.dci.prompts import BranchPrompts
from model.dci.settings import DCISettings
from model.errors import GenerationError
from model.guidance.settings import InferenceSettings
from model.pipeline import RealCustomPipeline
from tests.support.attention_records import KeepAll
from tests.support.tiny_pipelines import CROSS, build, subjects

PROMPTS = ["a [v] hat in ice", "in a [v] hat"]
SETTINGS = InferenceSettings(steps=4, mask_steps=1, guidance_scale=4.0)
DCI = DCISettings(concept="[v] hat", auxiliary_noun="cat", auxiliary_share=0.5, scales="authors")


@pytest.fixture(scope="module")
def pipelines(sd_folder: Path, sdxl_folder: Path) -> dict[str, RealCustomPipeline]:
    return {name: pipeline_of(folder) for name, folder in (("sd", sd_folder), ("sdxl", sdxl_folder))}


def pipeline_of(folder: Path, scheduler: Any = None) -> RealCustomPipeline:
    """On a backbone whose cross-attention changes the picture clearly."""
    backbone = load_backbone(folder)
    strength = 3 / backbone.encode_prompt(PROMPTS).hidden.std()
    for name, parameter in backbone.unet.named_parameters():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            parameter *= strength
    return RealCustomPipeline(backbone, scheduler=scheduler)


def latents_of(pipeline: RealCustomPipeline, dci: DCISettings | None, **options: Any) -> Tensor:
    kept: list[Tensor] = []

    def keep(_: RealCustomPipeline, step: int, timestep: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        kept.append(state["latents"])
        return state

    arguments = {"prompt": PROMPTS, "settings": SETTINGS, "seeds": 3, **options}
    pipeline(**arguments, dci=dci, callback_on_step_end=keep)
    return kept[-1]


class CountRows:
    """Counts the passes of a UNet and their rows."""

    def __init__(self, unet: torch.nn.Module) -> None:
        self.rows: list[int] = []
        self.hook = unet.register_forward_hook(lambda module, args, output: self.rows.append(len(args[0])))


@pytest.mark.parametrize("name", ["sd", "sdxl"])
@pytest.mark.parametrize("share", [0.25, 0.3, 0.5, 1.0])
def test_cost(name: str, share: float, pipelines: dict[str, RealCustomPipeline]) -> None:
    """In the paper's count a branch's guided prediction is one pass: at most T + T_a of them."""
    pipeline = pipelines[name]
    counter = CountRows(pipeline.backbone.unet)
    pipeline(PROMPTS, dci=replace(DCI, auxiliary_share=share), settings=SETTINGS)
    counter.hook.remove()
    batch, steps = len(PROMPTS), SETTINGS.steps
    assert len(counter.rows) == steps
    branches = sum(rows // batch - 1 for rows in counter.rows)
    assert steps < branches <= (1 + share) * steps
    assert sum(counter.rows) <= (1 + share) * 2 * batch * steps


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_off_is_the_plain_generation(name: str, pipelines: dict[str, RealCustomPipeline]) -> None:
    pipeline = pipelines[name]
    plain = latents_of(pipeline, None)
    assert torch.equal(latents_of(pipeline, replace(DCI, auxiliary_share=0.0)), plain)
    for scales in MASK_SCALES:
        off = latents_of(pipeline, replace(DCI, injection_strength=-1e9, scales=scales))
        torch.testing.assert_close(off, plain, rtol=1e-3, atol=1e-3)
        at_zero = latents_of(pipeline, replace(DCI, scales=scales))
        assert (at_zero - plain).abs().max() > 0.01
    assert torch.equal(latents_of(pipeline, None), plain)


def straightforward(backbone: Backbone, prompt: str, auxiliary_prompt: str, steps: int, two_branches: int) -> Tensor:
    """DCI with one whole pass after the other, and the matrices written out: guidance scale 4, lambda 1, seed 3."""
    text, other, empty = (backbone.encode_prompt([one]) for one in (prompt, auxiliary_prompt, ""))
    if backbone.zero_empty_prompt:
        empty = backbone.encode_negative_prompt(None, 1)
    own_c, own_a = (
        len(backbone.tokenizers[0](one, add_special_tokens=False).input_ids) for one in (prompt, auxiliary_prompt)
    )
    concept = [p - 1 for p in backbone.token_positions(prompt, "[v] hat")]
    noun = [p - 1 for p in backbone.token_positions(auxiliary_prompt, "cat")]
    content = (range(own_c), concept), (range(own_a), [t for t in range(own_a) if t not in noun])

    class Mix(KeepAll):
        """Replaces the outputs of the concept's pass, with the auxiliary pass's queries, keys and outputs at hand."""

        def __init__(self, others: dict[str, tuple[Tensor, Tensor, Tensor]] | None) -> None:
            super().__init__()
            self.others = others
            self.seen: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

        def wants(self, layer: str) -> bool:
            return layer.endswith("attn2")

        def integrate(self, layer: str, query: Tensor, key: Tensor, mask: Tensor | None, attended: Tensor) -> Tensor:
            self.seen[layer] = query, key, attended
            if self.others is None:
                return attended
            spatial = []
            for (q, k), (own, tokens) in zip(((query, key), self.others[layer][:2]), content, strict=True):
                maps = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)[..., 1 : 1 + len(own)]
                summed = (10 * maps).softmax(-1)[..., list(tokens)].sum(-1)
                spatial.append(500 * (10 * summed).softmax(-1))
            weights = torch.stack(spatial).softmax(0)[..., None]
            return weights[0] * attended + weights[1] * self.others[layer][2]

    scheduler = DDIMScheduler.from_config(backbone.scheduler.config)
    scheduler.set_timesteps(steps)
    latents = auxiliary = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(3))[None]
    for number, timestep in enumerate(scheduler.timesteps):
        eps_0 = backbone.predict(latents, timestep, empty)
        if number < two_branches:
            seen = Mix(None)
            eps_a = backbone.predict(auxiliary, timestep, other, integration=seen)
            eps_c = backbone.predict(latents, timestep, text, integration=Mix(seen.seen))
            guided = eps_0 + 4 * (eps_a - eps_0)
            auxiliary = scheduler.step(guided, timestep, auxiliary).prev_sample
        else:
            eps_c = backbone.predict(latents, timestep, text)
        latents = scheduler.step(eps_0 + 4 * (eps_c - eps_0), timestep, latents).prev_sample
    return latents


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_dci_step_by_step(name: str, pipelines: dict[str, RealCustomPipeline]) -> None:
    pipeline = pipelines[name]
    found = latents_of(pipeline, replace(DCI, injection_strength=1.0))  # attaches the processors
    with torch.no_grad():
        expected = straightforward(pipeline.backbone, PROMPTS[0], "a cat in ice", 4, 2)
        plain = latents_of(pipeline, None)
    torch.testing.assert_close(found[:1], expected, rtol=1e-3, atol=1e-3)
    assert (found - plain)[0].abs().max() > 0.1


def test_a_picture_does_not_depend_on_its_batch(pipelines: dict[str, RealCustomPipeline]) -> None:
    for noise in ("same", "own"):
        dci = replace(DCI, auxiliary_noise=noise)
        both = latents_of(pipelines["sd"], dci)
        alone = latents_of(pipelines["sd"], dci, prompt=PROMPTS[1], seeds=4)
        torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-3)
        assert torch.equal(both, latents_of(pipelines["sd"], dci))


@pytest.mark.parametrize(
    "changed",
    [
        {"auxiliary_noise": "own"},
        {"scales": "paper"},
        {"injection_strength": 1.0},
        {"auxiliary_noun": "toy"},
        {"auxiliary_share": 0.25},
        {"ablation": "no_mask"},
        {"ablation": "no_entire_prompt"},
        {"ablation": "no_deep_aggregation"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_every_setting_changes_the_picture(
    name: str, changed: dict[str, Any], pipelines: dict[str, RealCustomPipeline]
) -> None:
    before, after = (latents_of(pipelines[name], replace(DCI, **settings)) for settings in ({}, changed))
    assert after.isfinite().all()
    assert (before - after).abs().max() > 1e-3


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler])
def test_schedulers_with_a_history(kind: Any, pipelines: dict[str, RealCustomPipeline]) -> None:
    """Each branch has a scheduler of its own, and random ones draw the same noise in both branches."""
    backbone = pipelines["sd"].backbone
    pipeline = RealCustomPipeline(backbone, scheduler=kind.from_config(backbone.scheduler.config))
    plain = latents_of(pipeline, None)
    off = latents_of(pipeline, replace(DCI, injection_strength=-1e9))
    torch.testing.assert_close(off, plain, rtol=1e-2, atol=1e-2)
    assert latents_of(pipeline, DCI).isfinite().all()


def note(names: list[str], name: str, *_: object) -> None:
    names.append(name)


def test_the_last_layer(pipelines: dict[str, RealCustomPipeline]) -> None:
    for pipeline in pipelines.values():
        latents_of(pipeline, DCI)
        unet = pipeline.backbone.unet
        order: list[str] = []
        hooks = [
            module.register_forward_hook(partial(note, order, name))
            for name, module in unet.named_modules()
            if name.endswith("attn2")
        ]
        latents_of(pipeline, None, settings=InferenceSettings(steps=1, mask_steps=1))
        for hook in hooks:
            hook.remove()
        processors = attached_processors(unet)
        assert list(integration_layers(processors, deep=False)) == order[-1:]
        assert set(integration_layers(processors)) == set(order)


def test_aggregation_masks(pipelines: dict[str, RealCustomPipeline]) -> None:
    for name, scales in (("sd", [1, 2, 4, 8]), ("sdxl", [2, 4])):
        output = pipelines[name](PROMPTS, dci=DCI, settings=SETTINGS)
        assert len(output.aggregation_masks) == 2
        for masks in output.aggregation_masks:
            assert {scale: tuple(maps.shape) for scale, maps in masks.items()} == {
                scale: (2, 16 // scale, 16 // scale) for scale in scales
            }
            assert all(((maps >= 0) & (maps <= 1)).all() for maps in masks.values())
            pictures = aggregation_mask_pictures(masks, 32)
            assert list(pictures) == scales
            assert {picture.size for picture in pictures.values()} == {(32, 32)}
    assert pipelines["sd"](PROMPTS, settings=SETTINGS).aggregation_masks == []
    wide = pipelines["sd"](PROMPTS, dci=DCI, settings=SETTINGS, height=32, width=48).aggregation_masks[0]
    assert wide[1].shape == (2, 16, 24)


def test_beside_a_subject_of_realcustom_plus_plus(sd_folder: Path) -> None:
    """The generation branch is the concept branch: its visual attention stays, and the auxiliary branch has none."""
    pipeline = build(sd_folder)
    request = {"subjects": subjects(), "words": "hat"}
    masks = replace(SETTINGS, mask_cross_downscales=CROSS["sd"])
    plain = latents_of(pipeline, None, **request, settings=masks)
    off = latents_of(pipeline, replace(DCI, injection_strength=-1e9), **request, settings=masks)
    torch.testing.assert_close(off, plain, rtol=1e-3, atol=1e-3)
    both = latents_of(pipeline, DCI, **request, settings=masks)
    text_only = latents_of(pipeline, DCI)
    assert (both - plain).abs().max() > 0.01
    assert (both - text_only).abs().max() > 0.01
    counter = CountRows(pipeline.backbone.unet)
    pipeline(PROMPTS, subjects(), "hat", dci=DCI, settings=masks, use_mask=False)
    assert counter.rows == [6, 6, 4, 4]


def test_refused_beside_a_subject_of_realcustom(sd_folder: Path) -> None:
    pipeline = build(sd_folder, method=RealCustomAdapter)
    latents_of(pipeline, DCI)
    with pytest.raises(GenerationError, match=r"subjects of RealCustom, .* generate without subjects"):
        latents_of(pipeline, DCI, subjects=subjects(), words="hat")


def test_a_detached_adapter_stays_detached(sd_folder: Path) -> None:
    pipeline = build(sd_folder)
    assert pipeline.adapter is not None
    pipeline.adapter.detach(pipeline.backbone.unet)
    with pytest.raises(GenerationError, match="was detached"):
        latents_of(pipeline, DCI)


def test_too_few_steps(pipelines: dict[str, RealCustomPipeline]) -> None:
    with pytest.raises(GenerationError, match=r"auxiliary_share 0\.15 .* none of 4 steps"):
        latents_of(pipelines["sd"], replace(DCI, auxiliary_share=0.15), settings=SETTINGS)


def test_a_concept_of_several_learned_tokens(sd: Backbone) -> None:
    tokenizer, encoder = sd.tokenizers[0], sd.text_encoders[0]
    tokenizer.add_tokens(["<new1>", "<new2>"])
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    dci = replace(DCI, concept="<new1> <new2> cat", auxiliary_noun="toy")
    prompts = BranchPrompts.of(sd, ["a <new1> <new2> cat in ice"], dci)
    assert prompts.tokens(sd)[0].content[0].nonzero().flatten().tolist() == [2, 3, 4]
    assert latents_of(RealCustomPipeline(sd), dci, prompt=prompts.concept).isfinite().all()
