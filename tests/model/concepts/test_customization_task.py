"""Every customization method: what learns, what stays, and that a loaded concept is what was trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.backbone import Backbone, load_backbone
from model.concepts.concept import ConceptError
from model.concepts.contextualizer import Contextualizer
from model.concepts.customization_loss import CustomizationModule
from model.concepts.customization_settings import WITH_PRIOR
from model.concepts.customization_task import CustomizationTask
from model.concepts.folder import read_concept
from model.concepts.loading import load_concept, unload_concepts
from model.concepts.model_parts import ModelParts
from model.errors import ModelError
from tests.support.customization import (
    METHODS,
    backbone_of,
    make_subject,
    make_task,
    picture,
    predict,
    train,
    write_contextualizer,
)

#: Of a tiny encoder with two layers.
UNREAD = ("text_encoder.text_model.encoder.layers.1.", "text_encoder.text_model.final_layer_norm.")


@pytest.fixture
def contextualizer(folder: Path, tmp_path: Path) -> Path:
    return write_contextualizer(folder, tmp_path / "psi")


def others(folder: Path, method: str) -> dict[str, Any]:
    """Settings beside what is trained: with two encoders ICO, and class pictures for the methods that have some."""
    if "sdxl" not in folder.name:
        return {}
    prior = METHODS[method]["method"] in WITH_PRIOR
    return {"prompts": "ico", "context_before": 2, "context_after": 1, "prior_weight": 0.7 * prior}


def learning(backbone: Backbone, method: str) -> set[str]:
    """The parameters of a backbone that a method changes."""
    if method == "whole_models":
        return set(ModelParts.of(backbone).parameters())
    if method == "custom_diffusion":
        layers = ModelParts.of(backbone).keys_values()
        return {f"unet.{layer}.{to}.weight" for layer in layers for to in ("to_k", "to_v")}
    return set()


def weights(backbone: Backbone) -> dict[str, Tensor]:
    """Without the rows of placeholders."""
    found = {}
    for name, (module, own) in ModelParts.of(backbone).parameters().items():
        weight = getattr(module, own).detach().clone()
        vocabulary = backbone.text_encoders[0].config.vocab_size
        found[name] = weight[:vocabulary] if isinstance(module, torch.nn.Embedding) else weight
    return found


def stays(name: str, backbone: Backbone) -> bool:
    """Whether nothing depends on a parameter: a bias of keys; the end of SDXL's first text encoder."""
    return name.endswith("k_proj.bias") or (backbone.family == "sdxl" and name.startswith(UNREAD))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_what_learns_and_what_is_loaded(method: str, folder: Path, contextualizer: Path, tmp_path: Path) -> None:
    """All other weights stay equal to the bit, and a loaded concept predicts as the trained module does."""
    task = make_task(folder, contextualizer, **METHODS[method], **others(folder, method))
    untrained = load_backbone(folder)
    start = {name: weight.detach().clone() for name, weight in task.module().named_parameters()}
    module = train(task)
    backbone = backbone_of(module)
    assert_only_these_learned(module, start, untrained, learning(backbone, method))
    prompts = [f"in {task.subjects[0].placeholder} cat", "a cat"]
    expected = [predict(backbone, prompt) for prompt in prompts]
    plain = [predict(untrained, prompt) for prompt in prompts]
    task.export(module, tmp_path)
    assert load_concept(untrained, tmp_path) == [task.subjects[0].placeholder]
    for prompt, wanted in zip(prompts, expected, strict=True):
        torch.testing.assert_close(predict(untrained, prompt), wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(predict(untrained, prompts[0]), plain[0], atol=1e-4)
    drifts = METHODS[method]["method"] in WITH_PRIOR
    assert torch.allclose(predict(untrained, prompts[1]), plain[1], atol=1e-5) != drifts
    unload_concepts(untrained)
    assert torch.equal(predict(untrained, prompts[0]), plain[0])


def assert_only_these_learned(
    module: CustomizationModule, start: dict[str, Tensor], untrained: Backbone, expected: set[str]
) -> None:
    backbone, psi = module.frozen[:2]
    before, after = weights(untrained), weights(backbone)
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in expected ^ changed if not stays(name, backbone)} == set()
    assert psi is not None
    assert all(weight.grad is None for weight in psi.parameters())
    trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    unmoved = {name for name, weight in trained.items() if torch.equal(weight, start[name])}
    assert {name for name in unmoved if not stays(name, backbone)} == set()
    assert any(name.startswith("contexts.") for name in trained) == (module.settings.prompts == "ico")


def test_training_is_repeatable(sd_folder: Path, tmp_path: Path) -> None:
    contextualizer = write_contextualizer(sd_folder, tmp_path)
    settings: dict[str, Any] = {"method": "dreambooth", "prior_weight": 1.0, "flip": 0.5, "crop": 0.8}
    results = [list(train(make_task(sd_folder, contextualizer, **settings)).concept("").tensors()) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_a_batch_is_shared_out_among_workers(sdxl_folder: Path, tmp_path: Path) -> None:
    psi = write_contextualizer(sdxl_folder, tmp_path)
    task = make_task(sdxl_folder, psi, method="custom_diffusion", prior_weight=1.0, flip=0.5, crop=0.9, resize=True)
    whole, parts = task.batch(5, 0, 1), [task.batch(5, rank, 2) for rank in range(2)]
    drawn = {"latents", "ids", "ids_2", "loss_mask", "class_latents", "class_ids_2", "rich_ids", "masked", "layers"}
    assert drawn <= set(whole)
    assert "class_loss_mask" not in whole
    for name, tensor in whole.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), tensor)
    other = task.batch(6, 0, 1)
    assert not torch.equal(other["noise"], whole["noise"])
    with pytest.raises(ConceptError, match="2 pictures cannot be divided evenly among 3 workers"):
        task.batch(0, 0, 3)


def test_an_option_changes_no_other_draw(sd_folder: Path, tmp_path: Path) -> None:
    psi = write_contextualizer(sd_folder, tmp_path)
    plain = make_task(sd_folder, method="custom_diffusion").batch(3, 0, 1)
    rich = make_task(sd_folder, psi, method="custom_diffusion", prior_weight=1.0, prompts="ico").batch(3, 0, 1)
    assert all(torch.equal(rich[name], tensor) for name, tensor in plain.items())
    resized = make_task(sd_folder, method="custom_diffusion", resize=True).batch(3, 0, 1)
    assert all(torch.equal(resized[name], plain[name]) for name in ("noise", "timesteps", "pictures"))
    assert not torch.equal(resized["latents"], plain["latents"])


@pytest.mark.parametrize(
    ("prompts", "captions"),
    [("fixed", None), ("fixed", ("a cat",) * 3), ("ico", None)],
    ids=["templates", "captions", "ico"],
)
def test_templates_say_the_size(prompts: str, captions: tuple[str, ...] | None, sd_folder: Path) -> None:
    subjects = (make_subject(captions=captions),)
    task = make_task(sd_folder, subjects=subjects, method="custom_diffusion", resize=True, prompts=prompts)
    batches = [task.batch(step, 0, 1) for step in range(20)]
    tokenizer, found = backbone_of(task.module()).tokenizers[0], set()
    for batch in batches:
        for ids, mask in zip(batch["ids"], batch["loss_mask"], strict=True):
            prompt = tokenizer.decode(ids, skip_special_tokens=True)
            size = next((size for size in ("far", "small", "zoomed", "close up") if size in prompt), "none")
            share = float(mask.mean())
            if share != 0.25:  # of sides of both kinds, to either side of 0.6
                found.add((size, "larger" if share == 1 else "small" if share < 0.25 else "smaller"))
    if prompts == "fixed" and captions is None:
        worded = {("far", "small"), ("small", "small"), ("zoomed", "larger"), ("close up", "larger")}
        assert found == {*worded, ("none", "smaller")}
    else:
        assert found == {("none", "small"), ("none", "smaller"), ("none", "larger")}


def test_subjects_that_are_learned_together(sd_folder: Path, tmp_path: Path) -> None:
    subjects = (make_subject("[v]"), make_subject("[w]", first=10, word="toy"))
    task = make_task(sd_folder, subjects=subjects, method="custom_diffusion", prior_weight=1.0)
    prompts = {
        tuple(ids.tolist()): int(number)
        for step in range(30)
        for ids, number in zip(*(task.batch(step, 0, 1)[name] for name in ("ids", "pictures")), strict=True)
    }
    module = task.module()
    first, second = (
        set(backbone_of(module).tokenizers[0](subject.placeholder, add_special_tokens=False).input_ids)
        for subject in subjects
    )
    assert {number < 3 for ids, number in prompts.items() if first & set(ids)} == {True}
    assert {number < 3 for ids, number in prompts.items() if second & set(ids)} == {False}
    train(task)
    task.export(module, tmp_path)
    assert read_concept(tmp_path).placeholders == ["[v]", "[w]"]
    backbone = load_backbone(sd_folder)
    load_concept(backbone, tmp_path)
    prompt = "a [v] cat and [w] toy"
    torch.testing.assert_close(predict(backbone, prompt), predict(backbone_of(module), prompt), rtol=1e-4, atol=1e-5)
    assert not torch.equal(predict(backbone, "a [v]"), predict(backbone, "a [w]"))


@pytest.mark.parametrize("method", ["xti", "dreambooth", "custom_diffusion"])
def test_samples_do_not_change_the_training(method: str, sd_folder: Path, tmp_path: Path) -> None:
    results = []
    for name in ("without", "with"):
        task = make_task(sd_folder, **METHODS[method])
        module = train(task, steps=1)
        if name == "with":
            task.sample(module, 100, tmp_path)
        module(task.batch(1, 0, 1))["loss"].backward()
        gradients = [weight.grad for weight in module.parameters() if weight.requires_grad]
        results.append([gradient for gradient in gradients if gradient is not None])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert read_concept(tmp_path / "step-000100").method == METHODS[method]["method"]


@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_keeps_less_and_computes_the_same(
    method: str, folder: Path, contextualizer: Path
) -> None:
    task = make_task(folder, contextualizer, **METHODS[method], **others(folder, method))
    results = [kept_and_gradients(dataclasses.replace(task, gradient_checkpointing=on)) for on in (False, True)]
    (kept, expected), (kept_with_checkpoints, gradients) = results
    assert kept_with_checkpoints < kept
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)


def kept_and_gradients(task: CustomizationTask) -> tuple[int, dict[str, Tensor | None]]:
    """The bytes that the text encoders keep of prompts for the backward pass, and the gradients of a step."""
    module = task.module()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        backbone = backbone_of(module)
        states = backbone.encode_ids(backbone.token_ids([f"a {task.subjects[0].placeholder} cat"]))
    del states
    module(task.batch(1, 0, 1))["loss"].backward()
    return sum(kept.values()), {name: weight.grad for name, weight in module.named_parameters()}


def test_a_word_that_the_tokenizer_does_not_know_gets_a_row(sd_folder: Path) -> None:
    """DreamBooth's placeholder: its row is not trained."""
    task = make_task(sd_folder, subjects=(make_subject("£"),), method="dreambooth")
    concept = train(task).concept("")
    assert concept.lora
    (vectors,) = concept.tokens[0].embeddings
    backbone = load_backbone(sd_folder)
    assert torch.equal(
        vectors, backbone.text_encoders[0].get_input_embeddings().weight[[backbone.tokenizers[0].unk_token_id]]
    )


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no contextualizer": ({"method": "xti", "mlm": True}, {}, "MLM loss needs a contextualizer"),
    "two subjects": ({"method": "xti"}, {"subjects": (make_subject("[v]"), make_subject("[w]"))}, "learns one subject"),
    "one placeholder twice": (
        {"method": "custom_diffusion"},
        {"subjects": (make_subject("[v]"), make_subject("[V]"))},
        "two subjects have one placeholder",
    ),
    "a caption that is cut": (
        {"method": "xti"},
        {"subjects": (make_subject(captions=("a cat", "b " * 30 + "cat", "a cat")),)},
        r"prompt 'b b .*' of the subject tom is longer than the 24 tokens .* '\[v\]' is cut off",
    ),
    "class pictures": ({"method": "xti", "prior_weight": 1.0}, {}, "needs no class pictures"),
    "no class pictures": (
        {"method": "dreambooth", "prior_weight": 1.0},
        {"subjects": (make_subject("sks", class_pictures=()),)},
        "needs class pictures",
    ),
    "a placeholder that is a token": (
        {"method": "textual_inversion"},
        {"subjects": (make_subject("cat"),)},
        "'cat' is a token already",
    ),
    "no pictures": ({"method": "xti"}, {"subjects": (make_subject(pictures=()),)}, "no pictures"),
    "pictures of two sizes": (
        {"method": "xti"},
        {"subjects": (make_subject(pictures=(picture(0), picture(1, 16))),)},
        r"squares of one size .* \[\(16, 16\), \(32, 32\)\]",
    ),
    "a side that the VAE cannot divide": (
        {"method": "xti"},
        {"subjects": (make_subject(pictures=(picture(0, 33),)),)},
        "resolution 33",
    ),
    "a picture that is none": ({"method": "xti"}, {"subjects": (make_subject(pictures=(b"no",)),)}, "picture"),
    "a class word without tokens": ({"method": "xti"}, {"subjects": (make_subject(word=" "),)}, "class word ' '"),
    "a class word that is unknown": ({"method": "xti"}, {"subjects": (make_subject(word="£"),)}, "class word '£'"),
    "captions for other pictures": (
        {"method": "xti"},
        {"subjects": (make_subject(captions=("a cat",)),)},
        "1 captions",
    ),
    "captions beside ico": (
        {"method": "xti", "prompts": "ico"},
        {"subjects": (make_subject(captions=("a cat",) * 3),)},
        "captions",
    ),
    "class prompts for other pictures": (
        {"method": "dreambooth", "prior_weight": 1.0},
        {"subjects": (make_subject("sks", class_prompts=("a cat",)),)},
        "1 class prompts for 2",
    ),
}


@pytest.mark.parametrize(("settings", "changes", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(settings: dict[str, Any], changes: dict[str, Any], message: str, sd_folder: Path) -> None:
    task: CustomizationTask = dataclasses.replace(make_task(sd_folder, **settings), **changes)
    with pytest.raises(ModelError, match=message):
        task.module()


@pytest.mark.parametrize("prompts", [(), ("a cat in b",), ("b " * 30 + "[v] cat",)], ids=["none", "unnamed", "cut"])
def test_rich_prompts_name_the_subject(prompts: tuple[str, ...], sd_folder: Path, tmp_path: Path) -> None:
    task = make_task(sd_folder, write_contextualizer(sd_folder, tmp_path), method="xti")
    with pytest.raises(ConceptError, match=r"needs context-rich prompts with \[v\]"):
        dataclasses.replace(task, rich_prompts=prompts).module()


def test_a_contextualizer_of_another_text_encoder(sd_folder: Path, tmp_path: Path) -> None:
    Contextualizer(8, 500, num_layers=1, num_heads=2).save_pretrained(tmp_path)
    with pytest.raises(ConceptError, match="trained for another text encoder"):
        make_task(sd_folder, tmp_path, method="xti").module()
