import pytest
import torch

from model.micro_sd.architectures import build_unet
from tests.benchmarks.support.attention_maps import record_attention


@pytest.fixture
def inputs() -> tuple[torch.Tensor, int, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 16, 16, generator=generator), 500, torch.randn(2, 16, 128, generator=generator)


@torch.no_grad()
def test_recording_changes_nothing(inputs: tuple[torch.Tensor, int, torch.Tensor]) -> None:
    unet = build_unet().eval()
    expected = unet(*inputs).sample
    record_attention(unet)
    assert torch.allclose(unet(*inputs).sample, expected, atol=1e-5)


@torch.no_grad()
def test_recorded_maps_are_distributions(inputs: tuple[torch.Tensor, int, torch.Tensor]) -> None:
    unet = build_unet().eval()
    record = record_attention(unet)
    unet(*inputs)
    tokens = torch.stack([record.cross_map(torch.full((2,), token), 16) for token in range(16)])
    assert torch.allclose(tokens.sum(0), torch.ones(2, 16, 16), atol=1e-5)
    uniform = torch.ones(2, 16, 16)
    assert torch.allclose(record.spread(uniform), uniform, atol=1e-5)
