"""The Dual-Branch Integration Module against the numbers of the authors' formulae, and its properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.dci.integration import (
    MASK_SCALES,
    BranchTokens,
    DualBranchIntegration,
    MaskScales,
    auxiliary_mask,
    content_map,
    integrate_branches,
)
from model.dci.settings import Scales

AUTHORS, PAPER = MASK_SCALES["authors"], MASK_SCALES["paper"]
LAYER = "up_blocks.0.attentions.0.transformer_blocks.0.attn2"

#: Head 0, then head 1; four positions each.
M_C = [[0.836531, 0.217647, 0.117619, 0.440624], [0.104304, 0.278887, 0.800338, 0.684200]]
M_A = [[0.501498, 0.386669, 0.901610, 0.963988], [0.784050, 0.966969, 0.824085, 0.679729]]
W_A = {
    0.0: [[0.000000, 0.268130, 0.408711, 0.000088], [0.411072, 0.113007, 0.000000, 0.000000]],
    1.0: [[0.000000, 0.499950, 1, 1], [1, 1, 0.000000, 0.000000]],
    -2.0: [[0.000000, 0.046887, 0.000000, 0.000000], [0.000000, 0.000000, 0.000000, 0.000000]],
}
O_C = {
    0.0: [
        [(-0.367103, -0.379533), (0.139612, 0.030973), (0.439950, 0.225969), (-0.007908, -0.181401)],
        [(-0.317167, -0.135031), (-0.165180, 0.053524), (0.518110, 0.531400), (0.306991, 0.327598)],
    ],
    1.0: [
        [(-0.367103, -0.379533), (-0.065847, -0.124256), (0.241910, 0.075556), (0.464084, 0.181569)],
        [(0.033778, 0.092672), (-0.405372, -0.167698), (0.518110, 0.531400), (0.306991, 0.327598)],
    ],
    -2.0: [
        [(-0.367103, -0.379533), (0.335697, 0.179119), (0.576840, 0.329937), (-0.007949, -0.181433)],
        [(-0.562127, -0.293967), (-0.134579, 0.081708), (0.518110, 0.531400), (0.306991, 0.327598)],
    ],
}


def wave(shift: float, *shape: int) -> Tensor:
    return torch.sin(shift + 0.7 * torch.arange(math.prod(shape), dtype=torch.float64)).view(shape)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Q (3, 2, 4, 2), K and V (3, 2, 7, 2), in the order of our rows: unconditional, auxiliary, concept."""
    order = [0, 2, 1]
    return wave(0.1, 3, 2, 4, 2)[order], wave(0.5, 3, 2, 7, 2)[order], wave(0.9, 3, 2, 7, 2)[order]


def probabilities(query: Tensor, key: Tensor) -> Tensor:
    return (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1)


def tokens(own: int, content: list[int], length: int = 7, rows: int = 1) -> BranchTokens:
    """Tokens counted from 0 behind the start token."""
    marks = torch.zeros(2, rows, length, dtype=torch.bool)
    marks[0, :, 1 : 1 + own] = True
    marks[1, :, [1 + token for token in content]] = True
    return BranchTokens(marks[0], marks[1])


CONCEPT, AUXILIARY = tokens(5, [1, 2]), tokens(4, [0, 2, 3])


def module(strength: float, scales: MaskScales | None = AUTHORS) -> DualBranchIntegration:
    return DualBranchIntegration(CONCEPT, AUXILIARY, {LAYER: 1}, strength, scales)


def close(found: Tensor, expected: object) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=0, atol=1e-6)


def test_the_maps_are_those_of_the_authors_code() -> None:
    query, key, _ = inputs()
    _, auxiliary, concept = probabilities(query, key).chunk(3)
    close(content_map(concept, CONCEPT, AUTHORS.tokens)[0], M_C)
    close(content_map(auxiliary, AUXILIARY, AUTHORS.tokens)[0], M_A)


@pytest.mark.parametrize("strength", W_A)
def test_the_masks_are_those_of_the_authors_code(strength: float) -> None:
    query, key, _ = inputs()
    _, auxiliary, concept = probabilities(query, key).chunk(3)
    maps = content_map(concept, CONCEPT, 10.0), content_map(auxiliary, AUXILIARY, 10.0)
    close(auxiliary_mask(*maps, strength, AUTHORS)[0], W_A[strength])


@pytest.mark.parametrize("strength", O_C)
def test_the_outputs_are_those_of_the_authors_code(strength: float) -> None:
    query, key, value = inputs()
    plain = probabilities(query, key) @ value
    integration = module(strength)
    out = integration.integrate(LAYER, query, key, None, plain)
    close(out[2], O_C[strength])
    assert torch.equal(out[:2], plain[:2])
    close(integration.masks[1][0][0], [sum(pair) / 2 for pair in zip(*W_A[strength], strict=True)])


def by_the_equations(query: Tensor, key: Tensor, value: Tensor, strength: float) -> Tensor:
    """Eqs. 3-5 as printed (with the softmax over the tokens), head by head and position by position."""
    maps = probabilities(query, key)
    out = maps[2] @ value[2]
    for head in range(2):
        map_c, map_a = maps[2, head][:, [2, 3]].sum(1), maps[1, head][:, [1, 3, 4]].sum(1)
        spatial_c, spatial_a = map_c.exp() / map_c.exp().sum(), map_a.exp() / map_a.exp().sum()
        for p in range(4):
            e_c, e_a = spatial_c[p].exp(), (strength * spatial_a[p]).exp()
            f_c, f_a = maps[2, head, p] @ value[2, head], maps[1, head, p] @ value[1, head]
            out[head, p] = (e_c * f_c + e_a * f_a) / (e_c + e_a)
    return out


@pytest.mark.parametrize("strength", [0.0, 1.0, -2.0, 40.0])
def test_the_papers_equations(strength: float) -> None:
    query, key, value = inputs()
    out = module(strength, PAPER).integrate(LAYER, query, key, None, probabilities(query, key) @ value)
    torch.testing.assert_close(out[2], by_the_equations(query, key, value, strength))


def test_the_papers_masks_are_nearly_flat() -> None:
    """The values of a softmax over 4096 positions are about 1 / 4096."""
    maps = torch.rand(2, 1, 2, 4096, generator=torch.Generator().manual_seed(0))
    flat = auxiliary_mask(maps[0], maps[1], 2.0, PAPER)
    assert (flat - 0.5).abs().max() < 1e-3
    assert auxiliary_mask(maps[0], maps[1], 2.0, AUTHORS).std() > 0.02


def test_without_masks_the_branches_are_added() -> None:
    query, key, value = inputs()
    plain = probabilities(query, key) @ value
    integration = module(0.0, None)
    out = integration.integrate(LAYER, query, key, None, plain)
    assert torch.equal(out, torch.cat([plain[:2], plain[2:] + plain[1:2]]))
    assert not integration.masks


@pytest.mark.parametrize("scales", ["paper", "authors"])
def test_equal_branches_change_nothing(scales: Scales) -> None:
    query, key, value = inputs()
    query, key, value = (torch.cat([one[:1], one[2:], one[2:]]) for one in (query, key, value))
    plain = probabilities(query, key) @ value
    integration = DualBranchIntegration(CONCEPT, AUXILIARY, {LAYER: 1}, 0.7, MASK_SCALES[scales])
    torch.testing.assert_close(integration.integrate(LAYER, query, key, None, plain), plain)


@pytest.mark.parametrize("scales", MASK_SCALES.values(), ids=list(MASK_SCALES))
def test_only_lambda_to_minus_infinity_is_off(scales: MaskScales) -> None:
    query, key, value = inputs()
    plain = probabilities(query, key) @ value
    off = module(-1e9, scales).integrate(LAYER, query, key, None, plain)
    torch.testing.assert_close(off, plain)
    assert (module(0.0, scales).integrate(LAYER, query, key, None, plain) - plain).abs().max() > 0.1


@pytest.mark.parametrize("scales", MASK_SCALES.values(), ids=list(MASK_SCALES))
@given(order=st.permutations(range(4)))
def test_permuted_positions_permute_the_result(scales: MaskScales, order: list[int]) -> None:
    query, key, value = inputs()
    plain = probabilities(query, key) @ value
    out = module(1.0, scales).integrate(LAYER, query, key, None, plain)
    permuted = module(1.0, scales).integrate(LAYER, query[:, :, order], key, None, plain[:, :, order])
    torch.testing.assert_close(permuted, out[:, :, order])


@given(st.integers(8, 20), st.floats(-3, 3))
def test_tokens_behind_the_prompt(length: int, shift: float) -> None:
    """They change P, but the maps of all own tokens still have the sum 1 in the authors' code."""
    query, key, _ = inputs()
    longer = torch.cat([key, wave(shift, 3, 2, length - 7, 2)], 2)
    before, after = probabilities(query, key), probabilities(query, longer)
    assert not torch.allclose(before, after[..., :7])
    everything = tokens(5, [0, 1, 2, 3, 4], length)
    torch.testing.assert_close(content_map(after[2:], everything, 10.0), torch.ones(1, 2, 4, dtype=torch.float64))


@given(st.floats(-5, 5), st.floats(0.01, 3), st.sampled_from(["paper", "authors"]))
def test_the_weights_of_a_position(strength: float, more: float, scales: Scales) -> None:
    """They add up to one, and with lambda the auxiliary branch gains everywhere."""
    maps = torch.rand(2, 1, 2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = auxiliary_mask(maps[0], maps[1], strength, MASK_SCALES[scales])
    assert ((weights >= 0) & (weights <= 1)).all()
    ones = torch.ones(1, 2, 9, 3, dtype=torch.float64)
    torch.testing.assert_close(integrate_branches(ones, ones, weights), ones)
    assert (auxiliary_mask(maps[0], maps[1], strength + more, MASK_SCALES[scales]) >= weights).all()


def test_masked_keys_have_no_attention() -> None:
    query, key, value = inputs()
    mask = torch.zeros(3, 1, 1, 7, dtype=torch.float64)
    mask[..., 6] = -1e9
    out = module(1.0).integrate(LAYER, query, key, mask, probabilities(query, key[:, :, :6]) @ value[:, :, :6])
    shorter = DualBranchIntegration(tokens(5, [1, 2], 6), tokens(4, [0, 2, 3], 6), {LAYER: 1}, 1.0, AUTHORS)
    expected = shorter.integrate(
        LAYER, query, key[:, :, :6], None, probabilities(query, key[:, :, :6]) @ value[:, :, :6]
    )
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """S_c reaches 500: the masks are computed in fp32."""
    query, key, value = (one.to(dtype) for one in inputs())
    plain = probabilities(query.float(), key.float()).to(dtype) @ value
    out = module(1.0).integrate(LAYER, query, key, None, plain)
    assert out.dtype == dtype
    torch.testing.assert_close(out[2].float(), torch.tensor(O_C[1.0]), rtol=0, atol=0.03)
