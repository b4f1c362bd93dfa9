import math

import pytest
import torch
from torch import Tensor

from model.concepts.context_overfitting import (
    concept_similarity,
    context_similarity,
    symmetric_divergence,
)
from model.micro_sd.weights import load_micro_sd
from model.seeding import generator_of

_PROMPTS, _TOKENS, _WIDTH, _PLACES = 3, 6, 8, 16


def _random(*shape: int, purpose: str = "") -> Tensor:
    return torch.randn(shape, generator=generator_of(0, *shape, purpose))


@pytest.fixture
def concept() -> Tensor:
    return torch.tensor([1, 3, 2])


@pytest.fixture
def context(concept: Tensor) -> Tensor:
    chosen = torch.zeros(_PROMPTS, _TOKENS, dtype=torch.bool)
    chosen[:, 4:] = True
    chosen[0, 5] = False  # another number of tokens in each prompt
    return chosen


def _cosine(first: Tensor, second: Tensor) -> float:
    return float(first @ second) / math.sqrt(float(first @ first) * float(second @ second))


def _kl(first: list[float], second: list[float]) -> float:
    return sum(p * math.log(p / r) for p, r in zip(first, second, strict=True))


def test_sim_1_is_the_mean_cosine_with_the_concept(concept: Tensor, context: Tensor) -> None:
    states = _random(_PROMPTS, _TOKENS, _WIDTH)
    for row, value in enumerate(concept_similarity(states, concept, context).tolist()):
        own = states[row, int(concept[row])]
        cosines = [_cosine(states[row, token], own) for token in range(_TOKENS) if context[row, token]]
        assert value == pytest.approx(sum(cosines) / len(cosines), abs=1e-6)


def test_sim_2_is_the_mean_cosine_with_the_prompt_without_the_concept(context: Tensor) -> None:
    states, plain = _random(_PROMPTS, _TOKENS, _WIDTH), _random(_PROMPTS, _TOKENS, _WIDTH, purpose="plain")
    for row, value in enumerate(context_similarity(states, plain, context).tolist()):
        cosines = [_cosine(states[row, token], plain[row, token]) for token in range(_TOKENS) if context[row, token]]
        assert value == pytest.approx(sum(cosines) / len(cosines), abs=1e-6)
    assert torch.allclose(context_similarity(states, states, context), torch.ones(_PROMPTS))


def test_skl_is_the_mean_of_both_divergences_between_maps_over_places(concept: Tensor, context: Tensor) -> None:
    maps = _random(_PROMPTS, _PLACES, _TOKENS).softmax(-1)
    for row, value in enumerate(symmetric_divergence(maps, concept, context).tolist()):
        columns = [(maps[row, :, token] / maps[row, :, token].sum()).tolist() for token in range(_TOKENS)]
        own = columns[int(concept[row])]
        found = [
            (_kl(own, columns[token]) + _kl(columns[token], own)) / 2 for token in range(_TOKENS) if context[row, token]
        ]
        assert value == pytest.approx(sum(found) / len(found), rel=1e-4)


def test_skl_of_equal_maps_is_0_and_of_disjoint_ones_finite(concept: Tensor, context: Tensor) -> None:
    equal = torch.ones(_PROMPTS, _PLACES, _TOKENS) / _TOKENS
    assert torch.equal(symmetric_divergence(equal, concept, context), torch.zeros(_PROMPTS))
    disjoint = torch.zeros(1, 4, 2)
    disjoint[0, 0, 0] = disjoint[0, 1, 1] = 1.0
    value = symmetric_divergence(disjoint, torch.tensor([0]), torch.tensor([[False, True]]))
    assert torch.isfinite(value).all()
    assert value > 10


def _correlation_bound(queries: Tensor, to_k: Tensor, states: Tensor, first: int, second: int) -> tuple[Tensor, Tensor]:
    """Proposition 4: || M[:, i] - M[:, j] || <= || Q ||_F || W_K ||_F || c_i - c_j || with M = Q K^T; both sides ().

    Args:
        queries: Q (q, d).
        to_k: W_K (d, c).
        states: c (n, c).
        first: i.
        second: j.
    """
    correlation = queries @ (states @ to_k.T).T
    distance = (correlation[:, first] - correlation[:, second]).norm()
    return distance, queries.norm() * to_k.norm() * (states[first] - states[second]).norm()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_proposition_4_holds_for_any_queries_and_states(scale: float) -> None:
    for trial in range(50):
        queries, to_k = _random(_PLACES, 4, purpose=f"q{trial}"), _random(4, _WIDTH, purpose=f"k{trial}")
        states = scale * _random(_TOKENS, _WIDTH, purpose=f"c{trial}")
        distance, bound = _correlation_bound(queries, to_k, states, 0, 1)
        assert distance <= bound * (1 + 1e-5)
    parallel = torch.tensor([[2.0]])  # one dimension: both sides are equal
    assert torch.equal(*_correlation_bound(parallel, parallel, torch.tensor([[1.0], [4.0]]), 0, 1))


def test_proposition_4_holds_in_every_cross_attention_of_the_micro_model() -> None:
    models = load_micro_sd()
    ids = models.tokenizer(["a photo of a mug in the snow"], padding="max_length", return_tensors="pt").input_ids
    states = models.text_encoder(input_ids=ids).last_hidden_state[0]
    layers = [module for name, module in models.unet.named_modules() if name.endswith("attn2")]
    assert layers
    for layer in layers:
        queries = layer.to_q(_random(_PLACES, layer.to_q.in_features))
        for token in range(1, 8):
            distance, bound = _correlation_bound(queries, layer.to_k.weight, states, token, 5)
            assert distance <= bound
