"""Textual Inversion on tiny backbones: what learns, what stays, and that diffusers reads the result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.backbone import Backbone, load_backbone
from model.concepts.concept import ConceptError
from model.concepts.contextualizer import Contextualizer
from model.concepts.loading import load_concept
from model.concepts.textual_inversion import InversionSettings, TextualInversion, learn

SETTINGS = InversionSettings(
    placeholder="[v]",
    word="cat",
    steps=3,
    batch_size=2,
    learning_rate=1e-2,
    mlm_weight=0.1,
    mask_rate=0.5,
    seed=0,
)


def make_inversion(backbone: Backbone, settings: InversionSettings = SETTINGS) -> TextualInversion:
    torch.manual_seed(0)
    vocabulary = backbone.text_encoders[0].config.vocab_size
    contextualizer = Contextualizer(16, vocabulary, num_layers=1, num_heads=2)
    return TextualInversion(backbone, contextualizer, torch.randn(3, 4, 16, 16), ["a [v] cat in"], settings)


def weights_of(backbone: Backbone) -> dict[str, Tensor]:
    parts = {"unet": backbone.unet, **{f"text{n}": encoder for n, encoder in enumerate(backbone.text_encoders)}}
    return {f"{part}.{name}": t.clone() for part, model in parts.items() for name, t in model.state_dict().items()}


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_only_the_concept_learns(kind: str, request: pytest.FixtureRequest) -> None:
    backbone: Backbone = request.getfixturevalue(kind)
    inversion = make_inversion(backbone)
    before, start = weights_of(backbone), [row.detach().clone() for row in inversion.embeddings]
    psi = {name: tensor.clone() for name, tensor in inversion.frozen[1].state_dict().items()}
    steps = list(learn(inversion))
    assert [step.step for step in steps] == [1, 2, 3]
    assert all(step.diffusion > 0 for step in steps)
    for name, tensor in weights_of(backbone).items():
        assert torch.equal(tensor, before[name]), f"{name} has changed"
    assert all(torch.equal(tensor, psi[name]) for name, tensor in inversion.frozen[1].state_dict().items())
    assert {name.split(".")[0] for name, _ in inversion.named_parameters()} == {"embeddings"}
    for row, first in zip(inversion.embeddings, start, strict=True):
        assert not torch.equal(row, first)


def test_the_concept_starts_as_its_class_word(sd: Backbone) -> None:
    table = sd.text_encoders[0].get_input_embeddings().weight
    word = sd.tokenizers[0]("cat", add_special_tokens=False).input_ids
    expected = table[word].mean(0).clone()
    torch.testing.assert_close(make_inversion(sd).embeddings[0].detach(), expected)


def test_lambda_weighs_the_mlm_loss(sd_folder: Path) -> None:
    """The concept's gradient is grad L_diff + lambda grad L_MLM."""
    inversion = make_inversion(load_backbone(sd_folder))
    diffusion, mlm = inversion(0)
    separate = [torch.autograd.grad(loss, inversion.embeddings[0], retain_graph=True)[0] for loss in (diffusion, mlm)]
    assert all(gradient.abs().sum() > 0 for gradient in separate)
    total = diffusion + SETTINGS.mlm_weight * mlm
    together = torch.autograd.grad(total, inversion.embeddings[0])[0]
    torch.testing.assert_close(together, separate[0] + SETTINGS.mlm_weight * separate[1], rtol=1e-3, atol=1e-6)


def test_learning_is_repeatable(sd_folder: Path) -> None:
    results = []
    for _ in range(2):
        inversion = make_inversion(load_backbone(sd_folder))
        list(learn(inversion))
        results.append(inversion.concept("my cat", "sd").tokens[0].embeddings[0])
    assert torch.equal(results[0], results[1])


def test_a_loaded_concept_is_read_as_it_was_learned(sd_folder: Path) -> None:
    inversion = make_inversion(load_backbone(sd_folder))
    list(learn(inversion))
    ids = inversion.texts[0].ids(["a [v] cat"])
    with inversion._concept_in_place():
        learned = inversion.texts[0].encoder(input_ids=ids).last_hidden_state
    backbone = load_backbone(sd_folder)
    assert load_concept(backbone, inversion.concept("my cat", "sd")) == ["[v]"]
    torch.testing.assert_close(backbone.encode_prompt(["a [v] cat"]).hidden, learned)


def test_a_placeholder_is_added_once(sd: Backbone) -> None:
    make_inversion(sd)
    with pytest.raises(ConceptError, match=r"the placeholder '\[v\]' is a token already"):
        make_inversion(sd)
