"""The arithmetic in which the parts are trained."""

import torch


def mixed_precision(device: torch.device) -> torch.autocast:
    """bf16 autocast on GPUs, nothing on CPUs: without AMX their bf16 products are slower than those in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu")
