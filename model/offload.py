"""Models that stay on the CPU until they are called, as with `enable_model_cpu_offload` of diffusers' pipelines."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module
from torch import nn

from model.errors import ModelError


def accelerator() -> torch.device:
    """The current accelerator, with its index.

    Raises:
        ModelError: there is none.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        raise ModelError("enable_model_cpu_offload needs an accelerator, but torch finds none on this machine.")
    return torch.device(found.type, torch.accelerator.current_device_index())


def offload(models: Sequence[nn.Module], device: torch.device) -> list[Any]:
    """Keep models on the CPU. A call moves a model to the device, and the model before it back to the CPU.

    Args:
        models: in the order in which they are called.
        device: with its index.

    Returns:
        accelerate's hooks, one for each model; `hook.offload()` moves its model back to the CPU.
    """
    hooks: list[Any] = []
    for model in models:
        remove_hook_from_module(model)
        _, hook = cpu_offload_with_hook(model, device, prev_module_hook=hooks[-1] if hooks else None)
        hooks.append(hook)
    return hooks
