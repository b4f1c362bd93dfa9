from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

from model.adapters.visual_attention import Region, VisualAttentionProcessor, VisualCondition
from tests.support.attention_records import KeepAll

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
HEADS, WIDTH, POSITIONS, TOKENS, IMAGE_TOKENS = 2, 8, 9, 5, 7


class NamedArgumentsOnly:
    """A processor of somebody else, with fewer arguments than diffusers' own."""

    def __call__(
        self, attn: Attention, hidden_states: Tensor, *, encoder_hidden_states: Tensor | None = None, **_: object
    ) -> Tensor:
        return AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states)


def layer(cross: bool = True) -> Attention:
    torch.manual_seed(0)
    return Attention(WIDTH, 6 if cross else None, heads=HEADS, dim_head=WIDTH // HEADS).requires_grad_(False)


def attached(attention: Attention, downscale: int = 1) -> Attention:
    attention.set_processor(VisualAttentionProcessor(LAYER, downscale, NamedArgumentsOnly()))
    return attention


def condition(batch: int, seed: int = 1, **options: object) -> VisualCondition:
    generator = torch.Generator().manual_seed(seed)
    key, value = (torch.randn(batch, IMAGE_TOKENS, WIDTH, generator=generator) for _ in range(2))
    return VisualCondition({LAYER: (key, value)}, **options)  # type: ignore[arg-type]


def region(mask: Tensor) -> Region:
    """Where a mask (B, N, 1) is not zero, in each row as many positions as it has there."""
    positions = torch.stack([row.flatten().nonzero().flatten() for row in mask])
    return Region(positions, mask.gather(1, positions[..., None]))


def random_mask(batch: int = 2, kept: int = 4) -> Tensor:
    mask = torch.zeros(batch, POSITIONS, 1)
    for row in mask:
        row[torch.randperm(POSITIONS)[:kept]] = torch.rand(kept, 1) + 0.1
    return mask


def naive(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax(Q K^T / sqrt(d)) V, head by head, with the matrices written out."""
    width = WIDTH // HEADS
    heads = []
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        scores = (query[..., part] @ key[..., part].transpose(1, 2) / width**0.5).exp()
        heads.append(scores / scores.sum(-1, keepdim=True) @ value[..., part])
    return torch.cat(heads, -1)


def equation_17(
    attention: Attention, hidden: Tensor, text: Tensor, visual: list[VisualCondition], masks: list[Tensor]
) -> Tensor:
    query, key, value = attention.to_q(hidden), attention.to_k(text), attention.to_v(text)
    out = naive(query, key, value)
    for one, mask in zip(visual, masks, strict=True):
        out = out + one.scale * mask * naive(query, *one.keys_values[LAYER])
    return attention.to_out[0](out)


def inputs(batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, POSITIONS, WIDTH, generator=generator), torch.randn(batch, TOKENS, 6, generator=generator)


def test_equation_14() -> None:
    attention, (hidden, text) = attached(layer()), inputs()
    mask = random_mask()
    elsewhere = Region(torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 1, 1))
    for given, used in ((None, torch.ones(2, POSITIONS, 1)), ({1: region(mask), 2: elsewhere}, mask)):
        visual = condition(2, regions=given, scale=0.7)
        expected = equation_17(attention, hidden, text, [visual], [used])
        torch.testing.assert_close(attention(hidden, text, visual=visual), expected, rtol=1e-5, atol=1e-5)


def test_equation_17() -> None:
    attention, (hidden, text) = attached(layer()), inputs()
    masks = [random_mask(), random_mask(kept=2), random_mask(kept=POSITIONS)]
    scales: list[float | Tensor] = [0.5, torch.tensor([0.0, 2.0])[:, None, None], 1.0]
    visual = [
        condition(2, seed, regions={1: region(mask)}, scale=scale)
        for seed, (mask, scale) in enumerate(zip(masks, scales, strict=True))
    ]
    expected = equation_17(attention, hidden, text, visual, masks)
    torch.testing.assert_close(attention(hidden, text, visual=visual), expected, rtol=1e-5, atol=1e-5)
    everywhere = [condition(2, seed, scale=scale) for seed, scale in enumerate(scales)]
    expected = equation_17(attention, hidden, text, everywhere, [torch.ones(2, POSITIONS, 1)] * 3)
    torch.testing.assert_close(attention(hidden, text, visual=everywhere), expected, rtol=1e-5, atol=1e-5)


def test_positions_of_weight_zero_stay_as_they_are() -> None:
    """By hand: positions 3 and 5 in the first row, 3 alone in the second one, filled up with 0."""
    attention, (hidden, text) = attached(layer()), inputs()
    filled = Region(torch.tensor([[3, 5], [3, 0]]), torch.tensor([[[1.0], [1.0]], [[1.0], [0.0]]]))
    plain, out = attention(hidden, text), attention(hidden, text, visual=condition(2, regions={1: filled}))
    changed = (out - plain).abs().amax(-1) > 1e-6
    assert changed.nonzero().tolist() == [[0, 3], [0, 5], [1, 3]]


def test_half_precision_stays_so() -> None:
    attention, (hidden, text) = attached(layer()).to(torch.bfloat16), (part.to(torch.bfloat16) for part in inputs())
    for given in (None, {1: region(random_mask())}):
        visual = condition(2, regions=given, scale=torch.ones(2, 1, 1))
        assert attention(hidden, text, visual=visual).dtype == torch.bfloat16


def test_subject_only_in_the_last_rows() -> None:
    attention, (hidden, text) = attached(layer()), inputs(4)
    out = attention(hidden, text, visual=condition(2))
    torch.testing.assert_close(out[:2], attention(hidden, text)[:2])
    torch.testing.assert_close(out[2:], attention(hidden[2:], text[2:], visual=condition(2)))


def test_without_a_subject_the_original_processor_runs() -> None:
    hidden, text = inputs()
    assert torch.equal(attached(layer())(hidden, text), layer()(hidden, text))
    assert torch.equal(attached(layer(cross=False))(hidden), layer(cross=False)(hidden))
    assert torch.equal(attached(layer(cross=False))(hidden, visual=condition(2)), layer(cross=False)(hidden))


class StopHere(KeepAll):
    """Ends the pass at the first layer."""

    def record(self, layer: str, query: Tensor, key: Tensor) -> None:
        super().record(layer, query, key)
        raise StopIteration


class KeepNone(KeepAll):
    """Wants no layer."""

    def wants(self, layer: str) -> bool:
        return False


@pytest.mark.parametrize("cross", [True, False])
def test_recording(cross: bool) -> None:
    attention, (hidden, text) = attached(layer(cross), downscale=2), inputs(4)
    context = text if cross else None
    recorder = KeepAll()
    out = attention(hidden, context, recorder=recorder)
    torch.testing.assert_close(out, layer(cross)(hidden, context))
    query, key = recorder.records[LAYER]
    assert query.shape == (4, HEADS, POSITIONS, WIDTH // HEADS)
    expected = attention.to_k(text if cross else hidden).view(4, -1, HEADS, WIDTH // HEADS).transpose(1, 2)
    assert torch.equal(key, expected)
    with pytest.raises(StopIteration):
        attention(hidden, context, recorder=StopHere())
    none = KeepNone()
    assert torch.equal(attention(hidden, context, recorder=none), layer(cross)(hidden, context))
    assert not none.records


def test_masked_text_tokens_stay_masked() -> None:
    hidden, text = inputs()
    bias = torch.zeros(2, 1, TOKENS)
    bias[:, :, 3:] = -10000.0
    zero = VisualCondition({LAYER: (torch.randn(2, 3, WIDTH), torch.zeros(2, 3, WIDTH))})
    out = attached(layer())(hidden, text, attention_mask=bias, visual=zero)
    torch.testing.assert_close(out, layer()(hidden, text[:, :3]), rtol=1e-5, atol=1e-5)
