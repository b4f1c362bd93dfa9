"""The prompts of ICO (Eq. 2) row by row, what the encoder reads, and what learns."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor

from model.backbone import Backbone
from model.concepts.concept import ConceptError
from model.concepts.ico import (
    ContextPrompt,
    ImageSpecificContexts,
    context_prompt,
    detach_start_token,
    embeddings_module,
)
from model.concepts.loading import load_concept
from tests.support.concepts import textual_inversion, xti

#: S, the noun, M and L, for a tokenizer with a token a letter; "cat" is one token, "toy" three.
LAYOUTS = [
    (2, "cat", 4, 2),
    (3, "cat", 1, 1),
    (1, "toy", 1, 0),
    (5, "cat", 2, 3),
    (1, "cat", 0, 2),
    (2, "red toy", 6, 4),
]
IDS = [f"M{before}-L{after}-S{vectors}-{noun}" for vectors, noun, before, after in LAYOUTS]


def prompts_of(backbone: Backbone, noun: str, before: int, after: int) -> list[ContextPrompt]:
    return [context_prompt(tokenizer, "[v]", noun, before, after) for tokenizer in backbone.tokenizers]


def contexts(encoder: Any, prompt: ContextPrompt, pictures: int = 3) -> ImageSpecificContexts:
    """One set a picture; that of picture k is k more than the initial words."""
    module = ImageSpecificContexts(encoder, [prompt] * pictures)
    with torch.no_grad():
        module.contexts.add_(torch.arange(float(pictures))[:, None, None])
    return module


@pytest.mark.parametrize(("vectors", "noun", "before", "after"), LAYOUTS, ids=IDS)
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_rows_of_equation_2(
    kind: str, vectors: int, noun: str, before: int, after: int, request: pytest.FixtureRequest
) -> None:
    backbone: Backbone = request.getfixturevalue(kind)
    concept = textual_inversion(backbone, vectors=vectors)
    load_concept(backbone, concept)
    found = prompts_of(backbone, noun, before, after)
    for number, (tokenizer, encoder) in enumerate(zip(backbone.tokenizers, backbone.text_encoders, strict=True)):
        module, tables = contexts(encoder, found[number]), embeddings_module(encoder)
        with module.in_place(encoder, torch.tensor([2, 0])):
            rows = tables(module.ids[torch.tensor([2, 0])])
        token, place = tables.token_embedding.weight, tables.position_embedding.weight
        first, last, nouns = (
            tokenizer(words, add_special_tokens=False).input_ids for words in ("A photo of a", ". . . .", noun)
        )
        expected = [token[tokenizer.bos_token_id] + place[0]]
        expected += [token[i] + place[1 + m] + 2 for m, i in enumerate(first[:before])]
        expected += [concept.tokens[0].embeddings[number][s] + place[1 + s] for s in range(vectors)]
        expected += [token[i] + place[len(expected) + e] for e, i in enumerate(nouns)]
        expected += [token[i] + place[1 + m] + 2 for m, i in enumerate(last[:after])]
        expected += [token[tokenizer.eos_token_id] + place[len(expected)]]
        expected += [token[tokenizer.pad_token_id] + place[p] for p in range(len(expected), len(place))]
        torch.testing.assert_close(rows[0], torch.stack(expected))
        shared = (rows[0] == rows[1]).all(-1)
        assert (~shared).sum() == before + after


def test_the_encoder_reads_them(sdxl: Backbone) -> None:
    """With the inputs of a plain prompt at the contexts' places, every state is that of the plain prompt."""
    for tokenizer, encoder in zip(sdxl.tokenizers, sdxl.text_encoders, strict=True):
        prompt = context_prompt(tokenizer, "z", "cat", 3, 2)
        module, embeddings = ImageSpecificContexts(encoder, [prompt] * 3), embeddings_module(encoder)
        plain_prompt = tokenizer("b c d z cat e f", padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            module.contexts[:] = embeddings(plain_prompt)[0, prompt.places]
            module._shift.zero_()  # the concept where it stands
        plain = encoder(input_ids=plain_prompt, output_hidden_states=True)
        with module.in_place(encoder, torch.tensor([1, 2])):
            found = encoder(input_ids=module.ids[torch.tensor([1, 2])], output_hidden_states=True)
        torch.testing.assert_close(found.hidden_states[-2], plain.hidden_states[-2].expand(2, -1, -1))
        torch.testing.assert_close(found[0], plain[0].expand_as(found[0]))
        again = encoder(input_ids=plain_prompt, output_hidden_states=True)
        assert torch.equal(again.hidden_states[-2], plain.hidden_states[-2])


def test_xti_reads_the_contexts_in_every_layer(sd: Backbone) -> None:
    concept = xti(sd)
    load_concept(sd, concept)
    (encoder,) = sd.text_encoders
    (prompt,) = prompts_of(sd, "cat", 2, 1)
    module, seen = contexts(encoder, prompt), list[Tensor]()
    pictures = torch.tensor([2, 0])
    with module.in_place(encoder, pictures):
        last = embeddings_module(encoder).register_forward_hook(lambda _, args, output: seen.append(output))
        encoder(input_ids=module.ids[pictures])
        last.remove()
    copies = 1 + len(concept.tokens[0].layer_embeddings)
    for copy in seen[0].unflatten(0, (copies, 2)):
        torch.testing.assert_close(copy[:, prompt.places], module.contexts[pictures])


def test_what_learns(sd: Backbone) -> None:
    (encoder,) = sd.text_encoders
    module = contexts(encoder, context_prompt(sd.tokenizers[0], "z", "cat", 1, 1))
    pictures = torch.tensor([0, 2, 0])
    with module.in_place(encoder, pictures):
        encoder(input_ids=module.ids[pictures]).last_hidden_state.square().mean().backward()
    assert module.contexts.grad is not None
    assert [bool(one.any()) for one in module.contexts.grad] == [True, False, True]
    assert set(module.state_dict()) == {"contexts"}
    assert all(one.grad is None for one in encoder.parameters())


def test_the_start_token_has_no_gradient(sd: Backbone) -> None:
    unet = sd.unet
    layers = [module for name, module in unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))]
    text, other = torch.randn(2, 1, 5, 16, generator=torch.Generator().manual_seed(0))
    other[:, 1:] = text[:, 1:]  # only the start token differs
    assert layers
    for layer in layers:
        layer.weight.requires_grad_(True)
    with ExitStack() as undo:
        detach_start_token(unet, undo)
        outputs = [[layer(states) for states in (text, other)] for layer in layers]
    for layer, (first, second) in zip(layers, outputs, strict=True):
        gradients = [torch.autograd.grad(out.sum(), layer.weight)[0] for out in (first, second)]
        assert torch.equal(*gradients)
        assert gradients[0].any()
        assert torch.equal(layer(text), first)
        assert not torch.equal(torch.autograd.grad(layer(text).sum(), layer.weight)[0], gradients[0])


@pytest.mark.parametrize(
    ("noun", "before", "message"),
    [(" ", 1, "class word ' ' has no tokens"), ("cat", 30, r"the prompt has 33 tokens, .* reads 22: shorten")],
)
def test_refused(noun: str, before: int, message: str, sd: Backbone) -> None:
    with pytest.raises(ConceptError, match=message):
        context_prompt(sd.tokenizers[0], "z", noun, before, 1)
