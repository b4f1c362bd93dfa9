"""Models that wait on the CPU until they are called, as with `enable_model_cpu_offload` of diffusers' pipelines."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module
from torch import nn

from model.errors import ModelError


class OffloadError(ModelError):
    """There is no accelerator to bring the models to."""


def accelerator() -> torch.device:
    """The accelerator in use, with its index.

    Raises:
        OffloadError: there is none.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        raise OffloadError("enable_model_cpu_offload needs an accelerator, and torch finds none on this machine.")
    return torch.device(found.type, torch.accelerator.current_device_index())


def offload(models: Sequence[nn.Module], device: torch.device) -> list[Any]:
    """Keep models on the CPU; each goes to the device when it is called, and the one before it back to the CPU.

    Args:
        models: in the order in which they are called.
        device: with its index.

    Returns:
        accelerate's hooks, one a model; `hook.offload()` sends its model back to the CPU.
    """
    hooks: list[Any] = []
    for model in models:
        remove_hook_from_module(model)
        _, hook = cpu_offload_with_hook(model, device, prev_module_hook=hooks[-1] if hooks else None)
        hooks.append(hook)
    return hooks
