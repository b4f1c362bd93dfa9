"""XTI against a naive loop: each cross-attention layer of the UNet reads its own states."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.backbone import Backbone, load_backbone
from model.concepts.concept import Concept, ConceptToken
from model.concepts.loading import load_concept, unload_concepts
from tests.support.concepts import (
    PROMPT,
    diffusers_pipeline,
    xti,
)

Make = Callable[[Any], Concept]


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
