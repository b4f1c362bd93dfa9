from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

from model.visual_attention import AttentionRecorder, VisualAttentionProcessor, VisualCondition

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


def condition(batch: int, **options: object) -> VisualCondition:
    generator = torch.Generator().manual_seed(1)
    key, value = (torch.randn(batch, IMAGE_TOKENS, WIDTH, generator=generator) for _ in range(2))
    return VisualCondition({LAYER: (key, value)}, **options)  # type: ignore[arg-type]


def naive(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax(Q K^T / sqrt(d)) V, head by head, with the matrices written out."""
    width = WIDTH // HEADS
    heads = []
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        scores = (query[..., part] @ key[..., part].transpose(1, 2) / width**0.5).exp()
        heads.append(scores / scores.sum(-1, keepdim=True) @ value[..., part])
    return torch.cat(heads, -1)


def equation_14(attention: Attention, hidden: Tensor, text: Tensor, visual: VisualCondition, mask: Tensor) -> Tensor:
    query, key, value = attention.to_q(hidden), attention.to_k(text), attention.to_v(text)
    out = naive(query, key, value) + visual.scale * mask * naive(query, *visual.keys_values[LAYER])
    return attention.to_out[0](out)


def inputs(batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, POSITIONS, WIDTH, generator=generator), torch.randn(batch, TOKENS, 6, generator=generator)


def test_equation_14() -> None:
    attention, (hidden, text) = attached(layer()), inputs()
    mask = torch.rand(2, POSITIONS, 1)
    for given, used in ((None, torch.ones(2, POSITIONS, 1)), ({1: mask, 2: torch.zeros(2, 4, 1)}, mask)):
        visual = condition(2, masks=given, scale=0.7)
        expected = equation_14(attention, hidden, text, visual, used)
        torch.testing.assert_close(attention(hidden, text, visual=visual), expected, rtol=1e-5, atol=1e-5)


def test_mask_of_ones_is_no_mask_and_of_zeros_no_subject() -> None:
    attention, (hidden, text) = attached(layer()), inputs()
    plain = attention(hidden, text, visual=condition(2))
    ones = attention(hidden, text, visual=condition(2, masks={1: torch.ones(2, POSITIONS, 1)}))
    zeros = attention(hidden, text, visual=condition(2, masks={1: torch.zeros(2, POSITIONS, 1)}))
    assert torch.equal(plain, ones)
    assert torch.equal(zeros, attention(hidden, text))


def test_subject_only_in_the_last_rows() -> None:
    attention, (hidden, text) = attached(layer()), inputs(4)
    out = attention(hidden, text, visual=condition(2))
    torch.testing.assert_close(out[:2], attention(hidden, text)[:2])
    torch.testing.assert_close(out[2:], attention(hidden[2:], text[2:], visual=condition(2)))


def test_without_a_subject_the_former_processor_computes() -> None:
    hidden, text = inputs()
    assert torch.equal(attached(layer())(hidden, text), layer()(hidden, text))
    assert torch.equal(attached(layer(cross=False))(hidden), layer(cross=False)(hidden))
    assert torch.equal(attached(layer(cross=False))(hidden, visual=condition(2)), layer(cross=False)(hidden))


@pytest.mark.parametrize("cross", [True, False])
def test_recording(cross: bool) -> None:
    attention, (hidden, text) = attached(layer(cross), downscale=2), inputs(4)
    context = text if cross else None
    recorder = AttentionRecorder(3, cross_downscales=(2,), self_downscales=(2, 4))
    out = attention(hidden, context, recorder=recorder)
    torch.testing.assert_close(out, layer(cross)(hidden, context))
    (record,) = recorder.records
    assert (record.kind, record.downscale) == ("cross" if cross else "self", 2)
    assert record.query.shape == (3, HEADS, POSITIONS, WIDTH // HEADS)
    expected = attention.to_k(text if cross else hidden)[1:].view(3, -1, HEADS, WIDTH // HEADS).transpose(1, 2)
    assert torch.equal(record.key, expected)
    other = AttentionRecorder(3, cross_downscales=(1,), self_downscales=(1,))
    attention(hidden, context, recorder=other)
    assert not other.records


def test_masked_text_tokens_stay_masked() -> None:
    hidden, text = inputs()
    bias = torch.zeros(2, 1, TOKENS)
    bias[:, :, 3:] = -10000.0
    zero = VisualCondition({LAYER: (torch.randn(2, 3, WIDTH), torch.zeros(2, 3, WIDTH))})
    out = attached(layer())(hidden, text, attention_mask=bias, visual=zero)
    torch.testing.assert_close(out, layer()(hidden, text[:, :3]), rtol=1e-5, atol=1e-5)
