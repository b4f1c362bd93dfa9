"""Concepts in pipelines: pictures change, are what a plain computation paints, and nothing stays after unloading."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.adapters.adapter import VisualAdapter
from model.adapters.realcustom import RealCustomAdapter
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.backbone import Backbone, load_backbone
from model.concepts.concept import Concept, ConceptError, LoraLayer
from model.concepts.folder import write_concept
from model.concepts.loading import load_concept, loaded_placeholders, unload_concepts
from model.concepts.model_parts import ModelParts
from model.guidance.settings import InferenceSettings
from model.pipeline import RealCustomPipeline
from tests.support.concepts import (
    METHODS,
    PROMPT,
    custom_diffusion,
    diffusers_pipeline,
    dreambooth,
    paint,
    state_of,
    textual_inversion,
    xti,
)
from tests.support.tiny_pipelines import as_arguments, build, subjects

Make = Callable[[Any], Concept]


def paint_ours(backbone: Backbone, prompt: str = PROMPT) -> np.ndarray[Any, Any]:
    output = RealCustomPipeline(backbone)([prompt], settings=InferenceSettings(steps=2, mask_steps=1), seeds=0)
    return np.asarray(output.images[0])


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_a_picture_of_diffusers_changes_and_changes_back(make: Make, folder: Path, tmp_path: Path) -> None:
    pipeline = diffusers_pipeline(folder)
    before, state = paint(pipeline), state_of(pipeline)
    write_concept(tmp_path, make(pipeline))
    placeholders = load_concept(pipeline, tmp_path)
    assert loaded_placeholders(pipeline) == placeholders
    assert np.abs(paint(pipeline) - before).max() > 0.01
    unload_concepts(pipeline)
    assert state_of(pipeline) == state
    assert np.array_equal(paint(pipeline), before)
    assert loaded_placeholders(pipeline) == []


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_our_pipeline_paints_with_it(make: Make, folder: Path) -> None:
    backbone = load_backbone(folder)
    before, state = paint_ours(backbone), state_of(backbone)
    load_concept(RealCustomPipeline(backbone), make(backbone))
    assert not np.array_equal(paint_ours(backbone), before)
    unload_concepts(backbone)
    assert state_of(backbone) == state
    assert np.array_equal(paint_ours(backbone), before)


@pytest.mark.parametrize("make", [textual_inversion, xti], ids=["textual_inversion", "xti"])
def test_other_prompts_keep_their_states(make: Make, sd: Backbone) -> None:
    before = sd.encode_prompt(["a cat in a hat"]).hidden
    load_concept(sd, make(sd))
    hidden = sd.encode_prompt(["a cat in a hat"]).hidden
    for states in hidden.split(before.shape[1], dim=1):
        torch.testing.assert_close(states, before)


@pytest.mark.parametrize("method", [RealCustomAdapter, RealCustomPlusAdapter])
@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_a_concept_beside_a_subject(make: Make, method: type[VisualAdapter], folder: Path) -> None:
    """Both methods of RealCustom paint with it, and as before without it."""
    pipeline = build(folder, method=method)
    arguments = as_arguments(steps=2, seeds=0)

    def painted() -> np.ndarray[Any, Any]:
        return np.asarray(pipeline([PROMPT], [subjects(1)[0]], ["cat"], **arguments).images[0])

    before = painted()
    load_concept(pipeline, make(pipeline))
    assert not np.array_equal(painted(), before)
    unload_concepts(pipeline)
    assert np.array_equal(painted(), before)


# --- several --------------------------------------------------------------------------------------------------------


def test_several_concepts_are_loaded_at_once_and_unloaded_in_any_order(sd_folder: Path, tmp_path: Path) -> None:
    pipeline = diffusers_pipeline(sd_folder)
    makes: dict[str, Callable[..., Concept]] = {
        "<a>": textual_inversion,
        "<b>": xti,
        "<c>": custom_diffusion,
        "<d>": custom_diffusion,
    }
    state = state_of(pipeline)
    concepts = {name: make(pipeline, name) for name, make in makes.items()} | {"sks": dreambooth(pipeline)}
    for number, concept in enumerate(concepts.values()):
        write_concept(tmp_path / str(number), concept)
    assert load_concept(pipeline, *(tmp_path / str(number) for number in range(5))) == list(concepts)
    prompts = [f"a cat in {name} {other}" for name, other in (("<a>", "<b>"), ("<c>", "<d>"), ("sks", "<a>"))]
    together = [paint(pipeline, prompt) for prompt in prompts]
    unload_concepts(pipeline, "<b>", "sks")
    unload_concepts(pipeline, "<c>")
    assert loaded_placeholders(pipeline) == ["<a>", "<d>"]
    alone = [paint(pipeline, prompt) for prompt in prompts]
    assert not any(np.array_equal(*pair) for pair in zip(together, alone, strict=True))
    other = diffusers_pipeline(sd_folder)
    load_concept(other, concepts["<a>"])
    load_concept(other, concepts["<d>"])
    assert np.array_equal(paint(other, prompts[1]), alone[1])
    unload_concepts(pipeline)
    assert state_of(pipeline) == state


def test_changes_of_custom_diffusion_are_added(sd: Backbone) -> None:
    first, second = custom_diffusion(sd, "<a>"), custom_diffusion(sd, "<b>")
    layer, attention = next(iter(ModelParts.of(sd).cross_attention().items()))
    start = attention.to_k.weight.detach().clone()
    load_concept(sd, first)
    assert torch.equal(attention.to_k.weight, first.cross_attention[layer][0])
    load_concept(sd, second)
    both = first.cross_attention[layer][0] + second.cross_attention[layer][0] - start
    torch.testing.assert_close(attention.to_k.weight.detach(), both)


def test_one_folder_holds_several_concepts(sd_folder: Path, tmp_path: Path) -> None:
    pipeline = diffusers_pipeline(sd_folder)
    tokens = (textual_inversion(pipeline, "<a>").tokens[0], xti(pipeline, "<b>").tokens[0])
    joint = dataclasses.replace(custom_diffusion(pipeline, "<c>"), tokens=tokens)
    write_concept(tmp_path, joint)
    assert load_concept(pipeline, tmp_path) == ["<a>", "<b>"]
    assert not np.array_equal(paint(pipeline, "a <a>"), paint(pipeline, "a <b>"))
    unload_concepts(pipeline, "<a>")
    assert loaded_placeholders(pipeline) == []  # their weights are shared


def test_a_concept_in_half_precision(sd_folder: Path) -> None:
    pipeline = diffusers_pipeline(sd_folder).to(torch.bfloat16)
    before, state = paint(pipeline), {name: id(part) for name, part in pipeline.unet.named_parameters()}
    load_concept(pipeline, custom_diffusion(pipeline, "<a>"), dreambooth(pipeline), xti(pipeline))
    assert not np.array_equal(paint(pipeline), before)
    assert pipeline.unet.dtype == torch.bfloat16
    unload_concepts(pipeline)
    assert np.array_equal(paint(pipeline), before)
    assert {name: id(part) for name, part in pipeline.unet.named_parameters()} == state


@pytest.mark.nightly
def test_a_compiled_unet_sees_the_concept(sd: Backbone) -> None:
    """A compiled graph knows no hook that was added later: loading must make it compile again."""
    sd.unet.compile(backend="eager")
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([500]), sd.encode_prompt([PROMPT])
    whole = dreambooth(sd)
    before = sd.predict(*inputs)
    in_unet = {name: layer for name, layer in whole.lora.items() if name.startswith("unet.")}
    load_concept(sd, dataclasses.replace(whole, lora=in_unet))
    changed = sd.predict(*inputs)
    unload_concepts(sd)
    assert (changed - before).abs().max() > 0.01
    assert torch.equal(sd.predict(*inputs), before)


def test_the_pooled_embedding_is_that_of_the_end_token(sdxl_folder: Path) -> None:
    """SDXL's encoders say that their end token's id is 2; a new token's id is larger than that of the end token."""
    new, old = load_backbone(sdxl_folder), load_backbone(sdxl_folder)
    old.text_encoders[1].text_model.eos_token_id = 2
    concept = textual_inversion(new)
    load_concept(new, concept)
    load_concept(old, concept)
    expected = new.encode_prompt([PROMPT]).added_conditions["text_embeds"]
    assert torch.equal(old.encode_prompt([PROMPT]).added_conditions["text_embeds"], expected)
    unload_concepts(old)
    assert old.text_encoders[1].text_model.eos_token_id == 2


# --- errors ---------------------------------------------------------------------------------------------------------


def replaced_token(concept: Concept, **changes: Any) -> Concept:
    return dataclasses.replace(concept, tokens=(dataclasses.replace(concept.tokens[0], **changes),))


REFUSED: dict[str, tuple[Callable[[Backbone], list[Concept]], str]] = {
    "one placeholder twice": (lambda m: [textual_inversion(m), xti(m)], r"two concepts .*'\[v\]'"),
    "one placeholder in two normal forms": (
        lambda m: [textual_inversion(m, "<café>"), xti(m, "<cafe\u0301>")],
        "two concepts",
    ),
    "one placeholder in two cases": (lambda m: [textual_inversion(m, "[V]"), xti(m, "[v]")], "two concepts"),
    "a word of the tokenizer": (lambda m: [textual_inversion(m, "cat")], "'cat' is a token already"),
    "its word in upper case": (lambda m: [textual_inversion(m, "Cat")], "'Cat' is a token already"),
    "another width": (
        lambda m: [replaced_token(textual_inversion(m), embeddings=(torch.ones(1, 768),))],
        r"another backbone .*\[768\], the text encoders \[16\]",
    ),
    "another number of encoders": (
        lambda m: [replaced_token(textual_inversion(m), embeddings=(torch.ones(1, 16),) * 2)],
        "another backbone",
    ),
    "other layers": (
        lambda m: [replaced_token(xti(m), layer_embeddings={"down_blocks.7.attn2": (torch.ones(1, 16),)})],
        "another backbone .*1 cross-attention layers, the UNet has 10",
    ),
    "keys and values of another width": (
        lambda m: [
            dataclasses.replace(
                custom_diffusion(m),
                cross_attention={
                    name: (key[:, :-1], value) for name, (key, value) in custom_diffusion(m).cross_attention.items()
                },
            )
        ],
        "another backbone .*down_blocks.0",
    ),
    "a LoRA of another layer": (
        lambda m: [dataclasses.replace(c, lora={"unet.nowhere": next(iter(c.lora.values()))}) for c in [dreambooth(m)]],
        "another backbone .*unet.nowhere",
    ),
    "a LoRA of another shape": (
        lambda m: [
            dataclasses.replace(c, lora=dict.fromkeys(c.lora, LoraLayer(torch.ones(2, 5), torch.ones(5, 2))))
            for c in [dreambooth(m)]
        ],
        "another backbone",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_concepts_leave_the_model_as_it_was(
    make: Callable[[Backbone], list[Concept]], message: str, sd: Backbone
) -> None:
    load_concept(sd, textual_inversion(sd, "<kept>"))
    before = sd.encode_prompt(["a <kept>"]).hidden
    with pytest.raises(ConceptError, match=message) as raised:
        load_concept(sd, *make(sd))
    assert "\n" not in str(raised.value)
    assert loaded_placeholders(sd) == ["<kept>"]
    assert torch.equal(sd.encode_prompt(["a <kept>"]).hidden, before)


def test_what_has_no_text_encoder_is_refused(sd: Backbone) -> None:
    with pytest.raises(ConceptError, match="into a UNet2DConditionModel"):
        load_concept(sd.unet, textual_inversion(sd))
    with pytest.raises(ConceptError, match="no concept with the placeholder"):
        unload_concepts(sd, "[v]")
    unload_concepts(sd)
    assert loaded_placeholders(sd) == []


def test_weights_that_are_not_there_are_refused(sd: Backbone) -> None:
    """`enable_sequential_cpu_offload` moves them to the device meta."""
    concepts = [textual_inversion(sd), replaced_token(custom_diffusion(sd), embeddings=())]
    sd.unet.to("meta")
    sd.text_encoders[0].to("meta")
    for concept in concepts:
        with pytest.raises(ConceptError, match="load it before the offloading"):
            load_concept(sd, concept)


def test_concepts_beside_a_lora_of_peft(sd_folder: Path) -> None:
    peft = pytest.importorskip("peft")
    pipeline = diffusers_pipeline(sd_folder)
    concepts = [dreambooth(pipeline), custom_diffusion(pipeline)]
    pipeline.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
    before = paint(pipeline)
    for concept in concepts:
        load_concept(pipeline, concept)
        assert np.abs(paint(pipeline) - before).max() > 0.01
        unload_concepts(pipeline)
        assert np.array_equal(paint(pipeline), before)


@pytest.mark.parametrize("kinds", [("sd", "sdxl"), ("sdxl", "sd")], ids="-".join)
@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_a_concept_of_the_other_family_is_refused(
    make: Make, kinds: tuple[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source, target = (request.getfixturevalue(kind) for kind in kinds)
    write_concept(tmp_path, make(source))
    with pytest.raises(ConceptError, match="another backbone"):
        load_concept(target, tmp_path)
