"""Custom Diffusion's weights in diffusers' format (`save_attn_procs`)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

CUSTOM_DIFFUSION_FILE = "pytorch_custom_diffusion_weights.safetensors"
_PROCESSOR = ".processor"
_KEY, _VALUE = ".to_k_custom_diffusion.weight", ".to_v_custom_diffusion.weight"


def custom_diffusion_state(cross_attention: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The state that diffusers' `load_attn_procs` reads.

    diffusers needs an entry for each attention layer, and takes an empty one as "nothing learned here". Its own writer
    leaves these out of safetensors files, so that it cannot load them again.
    """
    state: dict[str, Tensor] = {}
    for layer, (key, value) in cross_attention.items():
        state[f"{layer}{_PROCESSOR}{_KEY}"] = key.detach().cpu().contiguous()
        state[f"{layer}{_PROCESSOR}{_VALUE}"] = value.detach().cpu().contiguous()
        state[f"{layer.removesuffix('attn2')}attn1{_PROCESSOR}"] = torch.zeros(0)
    return state


def cross_attention_of(state: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The weights in a state that diffusers or `custom_diffusion_state` wrote, as `Concept.cross_attention`.

    Raises:
        ValueError: Queries or outputs were learned too, or a layer's weights are not a pair.
    """
    others = [name for name in state if len(state[name]) and not name.endswith((_KEY, _VALUE))]
    if others:
        raise ValueError(f"the weights hold {others[0]}, and only keys and values can be used, not queries or outputs")
    layers = [name.removesuffix(_KEY).removesuffix(_VALUE) for name in state if len(state[name])]
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name in dict.fromkeys(layers):
        if f"{name}{_KEY}" not in state or f"{name}{_VALUE}" not in state:
            raise ValueError(f"the weights of {name} are not a pair of keys and values")
        found[name.removesuffix(_PROCESSOR)] = state[f"{name}{_KEY}"], state[f"{name}{_VALUE}"]
    return found
