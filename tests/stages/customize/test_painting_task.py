"""On what the stage paints."""

from __future__ import annotations

import pytest
import torch

from pipelines.config.loading import load_config
from stages.customize.painting_task import Device

DEVICES = [
    ("micro", [], "cpu", torch.float32),
    ("micro", ["compute.use_gpu=true"], "cuda", torch.float32),
    ("micro", ["compute.precision=bf16"], "cpu", torch.bfloat16),
    ("micro", ["compute.use_gpu=true", "compute.precision=fp16"], "cuda", torch.float16),
    ("micro", ["compute.use_gpu=true", "customize.trainer.use_gpu=false"], "cpu", torch.float32),
    ("micro", ["customize.trainer.use_gpu=true", "customize.trainer.precision=bf16"], "cuda", torch.bfloat16),
    ("micro", ["train_adapter.trainer.use_gpu=true"], "cpu", torch.float32),
    ("sd15", [], "cuda", torch.bfloat16),
    ("sd15", ["compute.use_gpu=false"], "cpu", torch.bfloat16),
    ("sd15", ["compute.use_gpu=false", "compute.precision=fp32"], "cpu", torch.float32),
    ("sd15", ["customize.method=dreambooth"], "cuda", torch.bfloat16),
    ("sdxl", [], "cuda", torch.bfloat16),
]


@pytest.mark.parametrize(
    ("profile", "settings", "name", "dtype"), DEVICES, ids=[f"{one[0]} {' '.join(one[1])}" for one in DEVICES]
)
def test_pictures_are_painted_where_the_run_computes(
    profile: str, settings: list[str], name: str, dtype: torch.dtype
) -> None:
    assert Device.of(load_config(profile, settings)) == Device(name, dtype)
