"""Concepts in pipelines: pictures change, are what a plain computation paints, and nothing stays after unloading."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.adapters.adapter import VisualAdapter
from model.adapters.realcustom import RealCustomAdapter
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.backbone import Backbone, load_backbone
from model.concepts.concept import Concept, ConceptError, ConceptToken, LoraLayer
from model.concepts.folder import write_concept
from model.concepts.loading import load_concept, loaded_placeholders, unload_concepts
from model.concepts.model_parts import ModelParts
from model.concepts.placeholders import add_placeholders, check_placeholder
from model.guidance.settings import InferenceSettings
from model.micro_sd.architectures import build_tokenizer
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


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["sd", "sdxl"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"{request.param}_folder")


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


# --- XTI against a naive loop ---------------------------------------------------------------------------------------


def naive_states(backbone: Backbone, concept: Concept, prompt: str) -> list[Tensor]:
    """The prompt's embedding for each cross-attention layer: Textual Inversion with that layer's embeddings."""
    token = concept.tokens[0]
    states = []
    for embeddings in token.layer_embeddings.values():
        plain = ConceptToken(placeholder="[v]", word="cat", subject="", embeddings=embeddings)
        load_concept(backbone, Concept(method="", backbone="", tokens=(plain,)))
        states.append(backbone.encode_prompt([prompt]).hidden)
        unload_concepts(backbone)
    return states


class NaiveProcessor:
    """Attention to one layer's states, whatever the UNet passes."""

    def __init__(self, states: Tensor) -> None:
        self.states = states

    def __call__(self, attn: Any, hidden_states: Tensor, **_: Any) -> Tensor:
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key, value = (attn.head_to_batch_dim(project(self.states)) for project in (attn.to_k, attn.to_v))
        scores = attn.get_attention_scores(query, key, None)
        return attn.to_out[0](attn.batch_to_head_dim(scores @ value))


@pytest.mark.parametrize("vectors", [1, 2])
def test_each_layer_of_the_unet_reads_its_own_states(vectors: int, folder: Path) -> None:
    naive, backbone = load_backbone(folder), load_backbone(folder)
    concept = xti(backbone, vectors=vectors)
    states = dict(zip(concept.tokens[0].layer_embeddings, naive_states(naive, concept, PROMPT), strict=True))
    processors = naive.unet.attn_processors
    naive.unet.set_attn_processor(
        {
            name: NaiveProcessor(states[name.removesuffix(".processor")]) if ".attn2." in name else processor
            for name, processor in processors.items()
        }
    )
    load_concept(backbone, concept)
    prompt = backbone.encode_prompt([PROMPT])
    latents, timestep = torch.randn(1, 4, 16, 16), torch.tensor([500])
    expected = naive.predict(latents, timestep, dataclasses.replace(prompt, hidden=states[next(iter(states))]))
    torch.testing.assert_close(backbone.predict(latents, timestep, prompt), expected, rtol=1e-4, atol=1e-5)


def test_a_long_negative_prompt_does_not_break_xti(folder: Path) -> None:
    pipeline = diffusers_pipeline(folder)
    load_concept(pipeline, xti(pipeline))
    size = {"height": 32, "width": 32, "num_inference_steps": 1, "output_type": "np"}
    pictures = [
        pipeline(PROMPT, negative_prompt=text, generator=torch.Generator().manual_seed(0), **size).images
        for text in ("a", "cat in " * 40, "cat in " * 60)
    ]
    assert not np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[1], pictures[2])


def test_processors_see_one_layers_states(sd: Backbone) -> None:
    """An adapter may be attached before or after the concept."""
    adapter = RealCustomPlusAdapter.from_unet(sd.unet, 16)
    load_concept(sd, xti(sd))
    latents, timestep, prompt = torch.randn(1, 4, 16, 16), torch.tensor([500]), sd.encode_prompt([PROMPT])
    expected = sd.predict(latents, timestep, prompt)
    adapter.attach(sd.unet)
    seen = []

    class Recorder:
        def wants(self, layer: str) -> bool:
            return layer.endswith("attn2")

        def record(self, layer: str, query: Tensor, key: Tensor) -> None:
            seen.append(key.shape[2])

    torch.testing.assert_close(sd.predict(latents, timestep, prompt, recorder=Recorder()), expected)
    assert set(seen) == {sd.tokenizers[0].model_max_length}


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


@pytest.mark.slow
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


# --- placeholders ---------------------------------------------------------------------------------------------------

FOUND = {
    "alone": ("[v]", "[v]", 1),
    "twice": ("[v]", "[v] in [v]", 2),
    "side by side": ("[v]", "[v][v]", 2),
    "upper case": ("[v]", "a [V] cat", 1),
    "mixed case placeholder": ("<MyCat>", "a <mycat> and <MyCat>", 2),
    "before punctuation": ("[v]", "[v], [v]. [v]! ([v])", 4),
    "possessive": ("[v]", "[v]'s hat", 1),
    "in a word": ("[v]", "x[v] [v]y [v]_1", 0),
    "a word": ("sks", "a sks cat", 1),
    "part of a word": ("sks", "risks asks sksa", 0),
    "a word with a hyphen": ("my-cat", "my-cat and my cat", 1),
    "several words": ("my cat", "my cat, mycat", 1),
    "with signs of expressions": ("(a+b)*", "(a+b)* aab", 1),
    "with a backslash": ("\\w", "\\w abc", 1),
    "not ASCII": ("café", "le café", 1),
    "decomposed": ("café", "le cafe\u0301", 1),
    "a decomposed placeholder": ("cafe\u0301", "le café", 1),
    "an emoji": ("🐈", "a 🐈 in", 1),
    "digits": ("v1", "v1 v10 v11", 1),
    "underscores": ("my_cat", "my_cat my_cats", 1),
    "stars": ("***", "a *** cat", 1),
    "no placeholder": ("[v]", "a v cat [ v ]", 0),
}  # fmt: skip


@pytest.mark.parametrize(("placeholder", "prompt", "count"), FOUND.values(), ids=FOUND)
@pytest.mark.parametrize("vectors", [1, 2])
def test_a_placeholder_is_found_where_it_is_written(
    placeholder: str, prompt: str, count: int, vectors: int, sd: Backbone
) -> None:
    tokenizer, plain = sd.tokenizers[0], len(sd.tokenizers[0])
    load_concept(sd, textual_inversion(sd, placeholder, vectors))
    new = [index for index in tokenizer(prompt).input_ids if index >= plain]
    assert new == [plain + vector for vector in range(vectors)] * count


def test_a_placeholder_within_another_is_not_mistaken_for_it(sd: Backbone) -> None:
    first = len(sd.tokenizers[0])
    load_concept(sd, textual_inversion(sd, "<a"), textual_inversion(sd, "<a>"))
    assert [index for index in sd.tokenizers[0]("<a> <a").input_ids if index >= first] == [first + 1, first]


def test_positions_of_a_placeholder_are_those_of_all_its_vectors(sd: Backbone) -> None:
    load_concept(sd, textual_inversion(sd, "[v]", 3))
    assert sd.token_positions("in [v] cat", "[v]") == [2, 3, 4]
    assert sd.token_positions("in [v] cat", "[v] cat") == [2, 3, 4, 5]


@pytest.mark.parametrize(("placeholder", "prompt", "count"), [("[toy]", "a [toy] toy", 1), ("<x>", "x <x> <x>s", 1)])
def test_a_tokenizer_that_drops_punctuation(placeholder: str, prompt: str, count: int) -> None:
    """The micro world's."""
    tokenizer = build_tokenizer()
    plain = len(tokenizer)
    check_placeholder(tokenizer, placeholder)
    with ExitStack() as undo:
        ids = add_placeholders(tokenizer, {placeholder: 2}, undo)[placeholder]
        assert [index for index in tokenizer(prompt).input_ids if index >= plain] == ids * count
        assert (
            tokenizer(prompt.replace(placeholder, "")).input_ids
            == build_tokenizer()(prompt.replace(placeholder, "")).input_ids
        )
    assert len(tokenizer) == plain
    with pytest.raises(ConceptError, match="'toy' is a token already"):
        check_placeholder(tokenizer, "toy")


# --- errors ---------------------------------------------------------------------------------------------------------


def replaced_token(concept: Concept, **changes: Any) -> Concept:
    return dataclasses.replace(concept, tokens=(dataclasses.replace(concept.tokens[0], **changes),))


REFUSED: dict[str, tuple[Callable[[Backbone], list[Concept]], str]] = {
    "one placeholder twice": (lambda m: [textual_inversion(m), xti(m)], r"two concepts .*'\[v\]'"),
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
    assert unload_concepts(sd) is None  # type: ignore[func-returns-value]  # nothing to do


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
