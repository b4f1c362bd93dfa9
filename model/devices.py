"""The device that a process computes on when nothing else says which."""

import torch


def fastest_device() -> torch.device:
    """The accelerator that this process sees (an NVIDIA or AMD GPU, Apple's, ...), else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
