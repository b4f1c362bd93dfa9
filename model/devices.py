"""The device on which pictures are painted where nobody names one."""

from __future__ import annotations

import torch


def painting_device() -> str:
    """The accelerator that PyTorch finds on this machine, "cuda" or Apple's "mps"; else "cpu"."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type
