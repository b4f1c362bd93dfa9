"""RealCustom's adaptive scoring module against loops over pictures and tokens, and against cases worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.adapters.adaptive_scoring import (
    AdaptiveScoringModule,
    ScoreFusion,
    fuse_by_schedule,
    sample_gamma_num,
    select,
    weighted_pool,
)

BATCH, TEXT_TOKENS, TEXT_WIDTH, IMAGE_TOKENS, IMAGE_WIDTH, CHANNELS, HEIGHT, WIDTH = 2, 5, 6, 10, 8, 4, 3, 2
FUSIONS: list[ScoreFusion] = ["scheduled", "textual", "visual", "mean"]


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "image": (BATCH, IMAGE_TOKENS, IMAGE_WIDTH),
        "text": (BATCH, TEXT_TOKENS, TEXT_WIDTH),
        "latents": (BATCH, CHANNELS, HEIGHT, WIDTH),
    }
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**tensors, "alpha_bar": torch.tensor([0.04, 0.81])}


def scoring(fusion: ScoreFusion = "scheduled") -> AdaptiveScoringModule:
    torch.manual_seed(0)
    module = AdaptiveScoringModule(TEXT_WIDTH, CHANNELS, IMAGE_WIDTH, fusion)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def softmax(numbers: list[float]) -> list[float]:
    exponentials = [math.exp(number - max(numbers)) for number in numbers]
    return [exponential / sum(exponentials) for exponential in exponentials]


def naive_context(vectors: list[Tensor], pooling: Tensor) -> Tensor:
    """Eqs. 5-7, one vector at a time."""
    shares = softmax([float(vector @ pooling[0]) for vector in vectors])
    return torch.stack([share * vector for share, vector in zip(shares, vectors, strict=True)]).sum(0)


def naive_score(weights: dict[str, Tensor], net: str, context: Tensor, token: Tensor) -> float:
    """A two-layer MLP of the context beside the token."""
    hidden = weights[f"{net}.0.weight"] @ torch.cat([context, token]) + weights[f"{net}.0.bias"]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    return float(weights[f"{net}.2.weight"][0] @ hidden + weights[f"{net}.2.bias"][0])


def naive_scores(module: AdaptiveScoringModule, row: int) -> list[float]:
    """Eqs. 5-8 of one picture."""
    data, weights = inputs(), {name: parameter.detach() for name, parameter in module.named_parameters()}
    textual, visual = [0.0] * IMAGE_TOKENS, [0.0] * IMAGE_TOKENS
    if module.fusion != "visual":
        context = naive_context(list(data["text"][row]), weights["textual_pooling.weight"])
        textual = [naive_score(weights, "textual_score_net", context, token) for token in data["image"][row]]
    if module.fusion != "textual":
        positions = [data["latents"][row, :, y, x] for y in range(HEIGHT) for x in range(WIDTH)]
        context = naive_context(positions, weights["visual_pooling.weight"])
        visual = [naive_score(weights, "visual_score_net", context, token) for token in data["image"][row]]
    share = {"textual": 0.0, "visual": 1.0, "mean": 0.5}.get(module.fusion, float(data["alpha_bar"][row]) ** 0.5)
    return softmax([(1 - share) * first + share * second for first, second in zip(textual, visual, strict=True)])


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("gamma_num", [1.0, 0.8, 0.35])
def test_equations_5_to_9(fusion: ScoreFusion, gamma_num: float) -> None:
    module, data = scoring(fusion), inputs()
    with torch.no_grad():
        tokens = module(**data, gamma_num=gamma_num)
    count = math.floor(gamma_num * IMAGE_TOKENS)
    assert tokens.shape == (BATCH, count, IMAGE_WIDTH)
    for row in range(BATCH):
        scores = naive_scores(module, row)
        best = sorted(range(IMAGE_TOKENS), key=scores.__getitem__, reverse=True)[:count]
        expected = torch.stack([data["image"][row, token] * (1 + scores[token]) for token in best])
        torch.testing.assert_close(tokens[row], expected, rtol=1e-4, atol=1e-5)


def test_pooling_by_hand() -> None:
    """Logits ln 3 and 0 give shares 3/4 and 1/4."""
    pooled = weighted_pool(torch.tensor([[[4.0, 8.0], [0.0, 4.0]]]), torch.tensor([[[math.log(3)], [0.0]]]))
    torch.testing.assert_close(pooled, torch.tensor([[[3.0, 7.0]]]))


def test_fusion_by_hand() -> None:
    """abar = 1/16: a quarter of the visual score; abar = 0, pure noise: the text alone; abar = 1: the picture alone."""
    textual, visual = torch.tensor([[4.0, 8.0]] * 3), torch.tensor([[0.0, 16.0]] * 3)
    fused = fuse_by_schedule(textual, visual, torch.tensor([1 / 16, 0, 1]))
    torch.testing.assert_close(fused, torch.tensor([[3.0, 10.0], [4.0, 8.0], [0.0, 16.0]]))


def test_selection_by_hand() -> None:
    """Of three tokens, 0.7 keeps floor(2.1) = 2: the third and the second, times 1.625 and 1.25."""
    tokens = torch.tensor([[[8.0], [16.0], [24.0]]])
    kept = select(tokens, torch.tensor([[0.125, 0.25, 0.625]]), 0.7)
    torch.testing.assert_close(kept, torch.tensor([[[39.0], [20.0]]]))


def test_the_share_is_not_lost_to_rounding() -> None:
    assert 0.29 * 100 < 29
    assert select(torch.zeros(1, 100, 1), torch.zeros(1, 100), 0.29).shape[1] == 29


@pytest.mark.parametrize("gamma_num", [0.0, -0.5, 0.05, 1.01, math.nan])
def test_a_share_that_keeps_nothing_or_too_much(gamma_num: float) -> None:
    with pytest.raises(ValueError, match=rf"^gamma_num {gamma_num} must .* at least one of 10 image tokens"):
        scoring()(**inputs(), gamma_num=gamma_num)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_weight_learns(fusion: ScoreFusion) -> None:
    module = scoring(fusion)
    module(**inputs(), gamma_num=0.5).square().sum().backward()
    # The last bias shifts all scores alike, which the softmax takes back.
    learning = {name: parameter for name, parameter in module.named_parameters() if not name.endswith("net.2.bias")}
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in learning.values())


def test_half_precision_keeps_its_type() -> None:
    tensors = {name: tensor if name == "alpha_bar" else tensor.bfloat16() for name, tensor in inputs().items()}
    assert scoring().bfloat16()(**tensors, gamma_num=0.5).dtype == torch.bfloat16


def test_an_unknown_fusion() -> None:
    with pytest.raises(ValueError, match="is 'sum'; it must be one of scheduled, textual, visual, mean"):
        AdaptiveScoringModule(6, 4, 8, "sum")  # type: ignore[arg-type]


def test_gamma_num_is_uniform_and_a_function_of_seed_and_step() -> None:
    numbers = [sample_gamma_num(7, step) for step in range(2000)]
    draws = torch.tensor(numbers)
    assert draws.min() >= 0.3
    assert draws.max() <= 1.0
    counts = torch.histc(draws, bins=7, min=0.3, max=1.0)
    assert (counts / len(draws) - 1 / 7).abs().max() < 0.03  # 4 standard deviations
    assert sample_gamma_num(7, 3) == numbers[3]
    assert sample_gamma_num(8, 3) != sample_gamma_num(7, 3)
