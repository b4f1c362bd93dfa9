"""From what the vectors of placeholders start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from model.backbone import Backbone
from model.concepts.customization_settings import CustomizationSettings
from model.concepts.learned_weights import initial_tokens
from model.concepts.model_parts import ModelParts
from tests.support.customization import make_subject


@pytest.mark.parametrize("word", ["cat", "red cat", "toy"])
@pytest.mark.parametrize("method", ["textual_inversion", "xti"])
def test_words_start_textual_inversion(method: Any, word: str, sdxl: Backbone) -> None:
    """Of several tokens their mean, for every vector and layer."""
    parts = ModelParts.of(sdxl)
    settings = CustomizationSettings(method=method, vectors=2)
    (token,) = initial_tokens(parts, [make_subject(word=word)], settings)
    for number, (tokenizer, encoder) in enumerate(zip(sdxl.tokenizers, sdxl.text_encoders, strict=True)):
        ids = tokenizer(word, add_special_tokens=False).input_ids
        mean = encoder.get_input_embeddings().weight[ids].mean(0).expand(2, -1)
        every = [layers[number] for layers in token.layer_embeddings.values()] or [token.embeddings[number]]
        assert len(every) == (len(parts.cross_attention()) if method == "xti" else 1)
        for vectors in every:
            torch.testing.assert_close(vectors, mean)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"method": "custom_diffusion"}, [[42170], [47629]]),
        ({"method": "custom_diffusion", "vectors": 2}, [[47629, 42170], [42170, 43514]]),
        ({"method": "custom_diffusion", "vectors": 3}, [[43514, 47629, 42170]] * 2),
        ({"method": "textual_inversion", "prompts": "ico", "vectors": 2}, [[47629, 42170], [42170, 43514]]),
    ],
    ids=["S1", "S2", "S3", "ico"],
)
def test_rare_tokens_of_clip_start_custom_diffusion_and_ico(
    settings: dict[str, Any], expected: list[list[int]], sd: Backbone
) -> None:
    table = nn.Embedding(49408, 16)
    sd.text_encoders[0].set_input_embeddings(table)
    subjects = [make_subject("[v]"), make_subject("[w]")]
    tokens = initial_tokens(ModelParts.of(sd), subjects, CustomizationSettings(**settings))
    for token, ids in zip(tokens, expected, strict=True):
        assert torch.equal(token.embeddings[0], table.weight[ids])


def test_other_vocabularies_have_no_rare_tokens(sd: Backbone) -> None:
    settings = CustomizationSettings(method="custom_diffusion")
    (token,) = initial_tokens(ModelParts.of(sd), [make_subject()], settings)
    (cat,) = sd.tokenizers[0]("cat", add_special_tokens=False).input_ids
    assert torch.equal(token.embeddings[0][0], sd.text_encoders[0].get_input_embeddings().weight[cat])


@pytest.mark.parametrize("placeholder", ["sks", "cat", "a cat", "[v]"])
def test_dreambooth_uses_words_as_they_are(placeholder: str, sd: Backbone) -> None:
    (token,) = initial_tokens(
        ModelParts.of(sd), [make_subject(placeholder)], CustomizationSettings(method="dreambooth")
    )
    assert not token.all_embeddings
