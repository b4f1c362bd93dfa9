"""LoRA in a model's layers, by hooks: the weights stay as they are."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from model.concepts.concept import LoraLayer


class LoraHook:
    """Adds up(down(x)) to a layer's output."""

    def __init__(self, lora: LoraLayer) -> None:
        self.down, self.up = lora.down, lora.up

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """The forward hook of a linear or convolution layer."""
        inputs = args[0]
        if self.down.device != inputs.device or self.down.dtype != inputs.dtype:
            self.down, self.up = self.down.to(inputs), self.up.to(inputs)
        if isinstance(module, nn.Conv2d):
            down = F.conv2d(inputs, self.down, None, module.stride, module.padding, module.dilation)
            return output + F.conv2d(down, self.up)
        return output + F.linear(F.linear(inputs, self.down.flatten(1)), self.up.flatten(1))


def add_lora(layer: nn.Module, lora: LoraLayer, undo: ExitStack) -> None:
    """Add a LoRA to a layer; `undo` gets a callback that removes it."""
    undo.callback(layer.register_forward_hook(LoraHook(lora)).remove)


def fits(layer: nn.Module, lora: LoraLayer) -> bool:
    """Whether a LoRA has a layer's shapes. Files have those of linear layers also as 1 x 1 convolutions."""
    if lora.up.shape[1] != lora.rank or lora.up.flatten(1).shape[1] != lora.rank:
        return False
    if isinstance(layer, nn.Conv2d):
        return (lora.up.shape[0], *lora.down.shape[1:]) == tuple(layer.weight.shape) and layer.groups == 1
    return isinstance(layer, nn.Linear) and (lora.up.shape[0], lora.down[0].numel()) == tuple(layer.weight.shape)
