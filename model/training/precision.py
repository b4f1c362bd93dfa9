"""The arithmetic of training: bf16 products on GPUs; fp32 on CPUs, where bf16 is slower unless they have AMX."""

import torch
from torch import nn


def mixed_precision(device: torch.device) -> torch.autocast:
    """bf16 autocast on GPUs, nothing on CPUs."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu")


#: The dtypes of half precision, by their names in configurations.
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def half_precision(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to a dtype of `HALVES`; None: nothing."""
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def halve_products(frozen: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
    """Cast the weights of linear and convolution layers once, which autocast would otherwise do in every pass."""
    for layer in frozen.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.to(dtype)
