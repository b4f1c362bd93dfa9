from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.adapters.image_encoder import ReferenceFeatures
from model.adapters.projector import Combination, CrossLayerCrossScaleProjector, MinAttention


def features(width: int = 8) -> ReferenceFeatures:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 5, width), (2, 15, width), (2, 20, width)
    return ReferenceFeatures(*(torch.randn(shape, generator=generator) for shape in shapes))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def naive_attention(module: MinAttention, queries: Tensor, context: Tensor) -> Tensor:
    """Loops over pictures, heads and positions."""
    weights = dict(module.named_parameters())
    queries = layer_norm(queries, weights["norm1.weight"], weights["norm1.bias"])
    context = layer_norm(context, weights["norm2.weight"], weights["norm2.bias"])
    q, k, v = (
        tensor @ weights[f"to_{name}.weight"].T for tensor, name in ((queries, "q"), (context, "k"), (context, "v"))
    )
    width = q.shape[-1] // module.heads
    out = torch.zeros_like(q)
    for picture in range(len(q)):
        for head in range(module.heads):
            part = slice(head * width, (head + 1) * width)
            for position in range(q.shape[1]):
                scores = torch.stack([q[picture, position, part] @ key / width**0.5 for key in k[picture, :, part]])
                shares = scores.exp() / scores.exp().sum()
                out[picture, position, part] = sum(
                    s * value for s, value in zip(shares, v[picture, :, part], strict=True)
                )
    return out


@pytest.mark.parametrize("head_width", [4, 64])
def test_min_attention(head_width: int) -> None:
    torch.manual_seed(0)
    module = MinAttention(8, head_width)
    assert module.heads == {4: 2, 64: 1}[head_width]
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    data = features()
    expected = naive_attention(module, data.deep, data.shallow)
    torch.testing.assert_close(module(data.deep, data.shallow), expected, rtol=1e-5, atol=1e-5)


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def naive_mlp(weights: dict[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    for layer, activation in (("0", gelu), ("2", gelu), ("4", lambda y: y)):
        x = activation(x @ weights[f"{prefix}.{layer}.weight"].T + weights[f"{prefix}.{layer}.bias"])
    return layer_norm(x, weights[f"{prefix}.5.weight"], weights[f"{prefix}.5.bias"])


Branch = Callable[[Tensor, Tensor, Tensor], list[Tensor]]

#: (cross_layer, cross_scale) -> the groups of tokens from f_shallow', f_high' and MLP(f_deep), written out.
COMBINATIONS: dict[tuple[Combination | None, Combination | None], Branch] = {
    (None, None): lambda shallow, high, deep: [deep],  # Table VIII 1
    ("concat", None): lambda shallow, high, deep: [shallow, deep],  # Table VIII 2
    ("concat", "add"): lambda shallow, high, deep: [shallow, deep + high],  # Eq. 9; Table VIII 3
    ("concat", "concat"): lambda shallow, high, deep: [shallow, high, deep],  # Table IX
    ("add", "concat"): lambda shallow, high, deep: [high, deep + shallow],  # Table IX
    (None, "add"): lambda shallow, high, deep: [deep + high],  # the authors' first release
}
every_combination = pytest.mark.parametrize("combination", COMBINATIONS, ids=str)


@every_combination
def test_projector_equations_5_to_9(combination: tuple[Combination | None, Combination | None]) -> None:
    torch.manual_seed(0)
    full = CrossLayerCrossScaleProjector(8, 6, 4)
    projector = CrossLayerCrossScaleProjector(8, 6, 4, *combination)
    weights = {name: parameter.detach() for name, parameter in full.named_parameters()}
    projector.load_state_dict({name: weights[name] for name in projector.state_dict()})
    data = features()
    with torch.no_grad():
        shallow = naive_mlp(weights, "shallow_mlp", naive_attention(full.shallow_attention, data.deep, data.shallow))
        high = naive_mlp(weights, "high_mlp", naive_attention(full.high_attention, data.deep, data.high))
        deep = data.deep @ weights["deep_mlp.weight"].T + weights["deep_mlp.bias"]
        tokens = projector(data)
    groups = COMBINATIONS[combination](shallow, high, deep)
    assert tokens.shape == (2, 5 * len(groups), 6)
    for group, expected in zip(tokens.split(5, dim=1), groups, strict=True):
        torch.testing.assert_close(group, expected, rtol=1e-5, atol=1e-5)


@every_combination
def test_every_weight_learns(combination: tuple[Combination | None, Combination | None]) -> None:
    projector = CrossLayerCrossScaleProjector(8, 6, 64, *combination)
    (projector(features()) ** 2).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in projector.parameters())


def test_names_of_the_weights_of_ccp() -> None:
    """Saved adapters and the import of the authors' weights rely on them."""
    attention = [
        "norm1.weight",
        "norm1.bias",
        "norm2.weight",
        "norm2.bias",
        "to_q.weight",
        "to_k.weight",
        "to_v.weight",
    ]
    mlp = [f"{layer}.{kind}" for layer in (0, 2, 4, 5) for kind in ("weight", "bias")]
    names = {f"{branch}_attention.{name}" for branch in ("shallow", "high") for name in attention}
    names |= {f"{branch}_mlp.{name}" for branch in ("shallow", "high") for name in mlp}
    assert set(CrossLayerCrossScaleProjector(8, 6).state_dict()) == names | {"deep_mlp.weight", "deep_mlp.bias"}


def test_an_unknown_combination() -> None:
    with pytest.raises(ValueError, match=r"^cross_scale is 'sum'; it must be 'concat', 'add' or None\.$"):
        CrossLayerCrossScaleProjector(8, 6, cross_scale="sum")


def test_save_and_load(tmp_path: Path) -> None:
    projector = CrossLayerCrossScaleProjector(8, 6, 4, "add", "concat")
    projector.save_pretrained(tmp_path)
    loaded = CrossLayerCrossScaleProjector.from_pretrained(tmp_path)
    assert torch.equal(loaded(features()), projector(features()))
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()


def test_width_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match="width 100"):
        MinAttention(100, 30)
