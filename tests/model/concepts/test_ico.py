"""The prompts of ICO (Eq. 2) row by row, and what learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from model.backbone import Backbone
from model.concepts.contextualizer import FrozenText
from model.concepts.ico import (
    ICO_ALONE,
    ICO_FOR_DCI,
    ImageSpecificContexts,
    PromptScheme,
    embeddings_module,
    ico_loss,
    parameter_groups,
    start_token_detached,
)
from model.errors import ModelError

#: Of a tokenizer with a token a letter: M = 4, L = 2, S = 2; M = 1, L = 1, S = 3; no suffix; a noun of three tokens.
SCHEMES = [
    (PromptScheme("a i n a", "..", 2), "cat", (4, 2, 1)),
    (PromptScheme("a", ".", 3), "cat", (1, 1, 1)),
    (PromptScheme("a", "", 1), "toy", (1, 0, 3)),
    (PromptScheme("in a", ", at", 5), "cat", (2, 3, 1)),
]
IDS = [f"M{counts[0]}-L{counts[1]}-S{scheme.concept_tokens}" for scheme, _, counts in SCHEMES]


def texts(backbone: Backbone) -> list[FrozenText]:
    pairs = zip(backbone.tokenizers, backbone.text_encoders, strict=True)
    return [FrozenText(tokenizer, encoder, backbone.family) for tokenizer, encoder in pairs]


def contexts(text: FrozenText, scheme: PromptScheme, noun: str, pictures: int = 3) -> ImageSpecificContexts:
    concept = torch.randn(scheme.concept_tokens, 16, generator=torch.Generator().manual_seed(0))
    return ImageSpecificContexts(text, scheme, noun, concept, pictures)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_rows_of_equation_2(kind: str, request: pytest.FixtureRequest) -> None:
    for text in texts(request.getfixturevalue(kind)):
        for scheme, noun, (before, after, nouns) in SCHEMES:
            module = contexts(text, scheme, noun)
            with torch.no_grad():
                module.contexts.add_(torch.arange(3.0)[:, None, None])
                rows = module(torch.tensor([2, 0]))
            tables = embeddings_module(text.encoder)
            token, place = tables.token_embedding.weight, tables.position_embedding.weight
            first, second, named = (
                text.tokenizer(words, add_special_tokens=False).input_ids
                for words in (scheme.before, scheme.after, noun)
            )
            assert (len(first), len(second), len(named)) == (before, after, nouns)
            start, end, pad = text.tokenizer.bos_token_id, text.tokenizer.eos_token_id, text.tokenizer.pad_token_id
            expected: list[Any] = [token[start] + place[0]]
            expected += [token[i] + place[1 + m] + 2 for m, i in enumerate(first)]
            expected += [module.concept[s] + place[1 + s] for s in range(scheme.concept_tokens)]
            expected += [token[i] + place[len(expected) + e] for e, i in enumerate(named)]
            expected += [token[i] + place[1 + m] + 2 for m, i in enumerate(second)]
            expected += [token[end] + place[len(expected)]]
            expected += [token[pad] + place[p] for p in range(len(expected), len(place))]
            torch.testing.assert_close(rows[0], torch.stack(expected))
            shared = (rows[0] == rows[1]).all(-1)
            assert (~shared).sum() == before + after


def prompt_as_contexts(text: FrozenText, module: ImageSpecificContexts, ids: Tensor) -> None:
    """Give the learnable parts the values that a plain prompt has at their places."""
    tables = embeddings_module(text.encoder)
    embedded = tables(ids[None])[0]
    tokens, before = len(module.concept), module.before
    own = [embedded[1 : 1 + before], embedded[module.after_start :][: module.contexts.shape[1] - before]]
    with torch.no_grad():
        module.contexts[:] = torch.cat(own)
        module.concept[:] = embedded[1 + before :][:tokens] - tables.position_embedding.weight[1 : 1 + tokens]


@pytest.mark.parametrize(("scheme", "noun", "counts"), SCHEMES, ids=IDS)
def test_the_encoder_reads_them(scheme: PromptScheme, noun: str, counts: Any, sdxl: Backbone) -> None:
    """With the values of a plain prompt, every state is that of the plain prompt, the pooled one too."""
    for text in texts(sdxl):
        module = contexts(text, scheme, noun)
        prompt = f"{scheme.before} {'z ' * scheme.concept_tokens}{noun}{' ' * bool(scheme.after)}{scheme.after}"
        (ids,) = text.ids([prompt])
        prompt_as_contexts(text, module, ids)
        plain = text.encoder(input_ids=ids[None], output_hidden_states=True)
        with module.in_place(text.encoder, torch.tensor([1, 2])) as like:
            found = text.encoder(input_ids=like, output_hidden_states=True)
        torch.testing.assert_close(found.hidden_states[-2], plain.hidden_states[-2].expand(2, -1, -1))
        torch.testing.assert_close(found[0], plain[0].expand_as(found[0]))
        again = text.encoder(input_ids=ids[None], output_hidden_states=True)
        assert torch.equal(again.hidden_states[-2], plain.hidden_states[-2])


def test_what_learns(sd: Backbone) -> None:
    (text,) = texts(sd)
    module = contexts(text, PromptScheme("a", ".", 3), "cat")
    with module.in_place(text.encoder, torch.tensor([0, 2, 0])) as ids:
        text.encoder(input_ids=ids).last_hidden_state.square().mean().backward()
    assert module.contexts.grad is not None
    assert module.concept.grad is not None
    assert [bool(one.any()) for one in module.contexts.grad] == [True, False, True]
    assert module.concept.grad.any(1).all()
    assert {name for name, _ in module.named_parameters()} == {"contexts", "concept"}
    assert set(module.state_dict()) == {"contexts", "concept"}
    assert all(one.grad is None for one in text.encoder.parameters())


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_objective(kind: str, request: pytest.FixtureRequest) -> None:
    """It falls when the parts that learn follow their gradients, and no other part gets one."""
    backbone: Backbone = request.getfixturevalue(kind)
    modules = [contexts(text, PromptScheme("a", ".", 3), "cat", pictures=2) for text in texts(backbone)]
    names = ("attn2.to_k.weight", "attn2.to_v.weight")
    keys_values = [
        weight.requires_grad_(True) for name, weight in backbone.unet.named_parameters() if name.endswith(names)
    ]
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 2, 4, 16, 16, generator=generator)
    batch = latents, torch.tensor([1, 0]), noise, torch.tensor([100, 700])
    optimizer = torch.optim.SGD(parameter_groups(modules, keys_values, 1e-2))
    losses = []
    for _ in range(4):
        loss = ico_loss(backbone, modules, *batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]
    learning = [*keys_values, *(one for module in modules for one in module.parameters())]
    assert all(one.grad is not None and one.grad.any() for one in learning)


def test_the_rates(sd: Backbone) -> None:
    modules = [contexts(text, PromptScheme("a", ".", 3), "cat") for text in texts(sd) * 2]
    keys = [torch.nn.Parameter(torch.zeros(2))]
    slow, fast = parameter_groups(modules, keys, 1e-5)
    assert (slow["lr"], fast["lr"]) == (1e-5, pytest.approx(1e-4))
    assert [id(one) for one in slow["params"]] == [id(one) for one in (modules[0].concept, modules[1].concept, *keys)]
    assert [id(one) for one in fast["params"]] == [id(one.contexts) for one in modules]


def test_the_start_token_has_no_gradient(sd: Backbone) -> None:
    unet = sd.unet
    layers = [module for name, module in unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))]
    text, other = torch.randn(2, 1, 5, 16, generator=torch.Generator().manual_seed(0))
    other[:, 1:] = text[:, 1:]  # only the start token differs
    assert layers
    for layer in layers:
        layer.weight.requires_grad_(True)
    with start_token_detached(unet):
        outputs = [[layer(states) for states in (text, other)] for layer in layers]
    for layer, (first, second) in zip(layers, outputs, strict=True):
        gradients = [torch.autograd.grad(out.sum(), layer.weight)[0] for out in (first, second)]
        assert torch.equal(*gradients)
        assert gradients[0].any()
        assert torch.equal(layer(text), first)
        assert not torch.equal(torch.autograd.grad(layer(text).sum(), layer.weight)[0], gradients[0])


@pytest.mark.parametrize(
    ("scheme", "noun", "rows", "message"),
    [
        (PromptScheme("", ".", 1), "cat", 1, "has no tokens"),
        (PromptScheme("a", ".", 1), " ", 1, "class noun ' ' has no tokens"),
        (PromptScheme("a", ".", 2), "cat", 1, "1 initial embeddings for the 2 tokens"),
        (PromptScheme("a photo of a very long thing", ".", 1), "cat", 1, "a prompt of 25 tokens; .* reads 22"),
    ],
)
def test_refused(scheme: PromptScheme, noun: str, rows: int, message: str, sd: Backbone) -> None:
    with pytest.raises(ModelError, match=message):
        ImageSpecificContexts(texts(sd)[0], scheme, noun, torch.zeros(rows, 16), 2)


def test_the_schemes_of_the_paper() -> None:
    """Sec. 4.2, in words of one token each."""
    for scheme, lengths in ((ICO_ALONE, (4, 2, 2)), (ICO_FOR_DCI, (1, 1, 3))):
        assert (len(scheme.before.split()), len(scheme.after.split()), scheme.concept_tokens) == lengths
