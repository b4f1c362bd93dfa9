from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.image_encoder import ReferenceFeatures
from model.projector import CrossLayerCrossScaleProjector, MinAttention


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


def test_projector_equations_5_to_9() -> None:
    torch.manual_seed(0)
    projector = CrossLayerCrossScaleProjector(8, 6, 4)
    weights = {name: parameter.detach() for name, parameter in projector.named_parameters()}
    data = features()
    with torch.no_grad():
        shallow = naive_mlp(
            weights, "shallow_mlp", naive_attention(projector.shallow_attention, data.deep, data.shallow)
        )
        high = naive_mlp(weights, "high_mlp", naive_attention(projector.high_attention, data.deep, data.high))
        deep = data.deep @ weights["deep_mlp.weight"].T + weights["deep_mlp.bias"]
        tokens = projector(data)
    assert tokens.shape == (2, 10, 6)
    torch.testing.assert_close(tokens[:, :5], shallow, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens[:, 5:], deep + high, rtol=1e-5, atol=1e-5)


def test_every_weight_learns() -> None:
    projector = CrossLayerCrossScaleProjector(8, 6)
    (projector(features()) ** 2).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in projector.parameters())


def test_save_and_load(tmp_path: Path) -> None:
    projector = CrossLayerCrossScaleProjector(8, 6, 4)
    projector.save_pretrained(tmp_path)
    loaded = CrossLayerCrossScaleProjector.from_pretrained(tmp_path)
    assert torch.equal(loaded(features()), projector(features()))
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()


def test_width_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match="width 100"):
        MinAttention(100, 30)
