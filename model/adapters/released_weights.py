"""Import of the weights that the authors of RealCustom++ released (for SDXL) into `RealCustomPlusAdapter`.

    python -m model.adapters.released_weights RealCustom_highres.pth adapter/

The files are state dicts of the authors' UNet: .safetensors, or pickles (.pth, .bin) that are read with
`torch.load(weights_only=True)`, which refuses everything but tensors. There are two forms:

    high resolution only         min_attention, projector, projector_base      f_ci = MLP(f_deep) + f_high'
    high resolution and shallow  also min_attention2, projector2               Eq. 9, see `released_forward`

The authors' forward pass of the second form concatenates f_shallow' and MLP(f_deep), and discards the sum with f_high'
that it has computed: it departs from Eq. 9, and is row 2 of Table VIII.

This module imports weights only. The authors' inference code differs from this project's in three more points: it takes
the deep features from blocks 25 (SigLIP) and 22 (DINOv2) without the final norm, it makes the four high-resolution
views of every second pixel instead of quarters of the picture, and it gives the features of a black picture to the
unconditional rows.
"""

import argparse
import pickle
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.adapters.adapter import AdapterError, cross_attention_widths
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter

_PROJECTOR = "encoder_hidden_states_vision_projection"
#: Modules of this project's projector -> the authors'.
_MODULES = {
    "shallow_attention": "min_attention2",
    "shallow_mlp": "projector2",
    "high_attention": "min_attention",
    "high_mlp": "projector",
    "deep_mlp": "projector_base",
}
_SHALLOW = (f"{_PROJECTOR}.min_attention2.", f"{_PROJECTOR}.projector2.")
SDXL_UNET: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_LISTED = 10  # keys in a message; a file of another model lacks hundreds
#: Errors that reading a damaged file raises.
_DAMAGED = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    EOFError,
)


def convert_released(
    state: Mapping[str, Tensor], unet: UNet2DConditionModel, *, released_forward: bool = False
) -> RealCustomPlusAdapter:
    """The adapter of a released state dict; its weights keep their precision.

    Args:
        state: may contain the base UNet's own weights too; they are ignored.
        unet: the base model that the weights were trained for, or `sdxl_unet()`.
        released_forward: compute what the authors' code computes from the second form: the high-resolution branch has
            no effect there and is left out. By default the adapter has all weights and computes Eq. 9.

    Raises:
        AdapterError: keys are missing or unexpected, or tensors have a wrong shape (the message lists them).
    """
    shallow = any(key.startswith(_SHALLOW) for key in state)
    widths = (cross_attention_widths(unet), _image_width(state), unet.config.cross_attention_dim)
    with torch.device("meta"):
        adapter = RealCustomPlusAdapter(*widths, cross_layer="concat" if shallow else None)
    weights = _renamed(state, adapter, unet.state_dict().keys())
    if shallow and released_forward:
        with torch.device("meta"):
            adapter = RealCustomPlusAdapter(*widths, cross_scale=None)
    adapter.load_state_dict({name: weights[name] for name in adapter.state_dict()}, assign=True)
    return adapter


def released_names(adapter: RealCustomPlusAdapter) -> dict[str, str]:
    """Names of an adapter's weights -> the authors' names."""
    layers = {layer.replace(".", "_"): layer for layer in adapter.config["layers"]}
    names = {}
    for name in adapter.state_dict():
        kind, module, rest = name.split(".", 2)
        prefix = f"{_PROJECTOR}.{_MODULES[module]}" if kind == "projector" else f"{layers[module]}.{kind}"
        names[name] = f"{prefix}.{rest}"
    return names


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a pickle that contains nothing but tensors.

    Raises:
        AdapterError: the file is damaged, contains more than tensors, or is no state dict.
        OSError: the file does not exist.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise AdapterError(f"{path} is damaged, or contains more than tensors.") from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise AdapterError(f"{path} is not a state dict, which has a tensor for each name.")
    return state


def sdxl_unet() -> UNet2DConditionModel:
    """A UNet of SDXL's shape without weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(**SDXL_UNET)


def _image_width(state: Mapping[str, Tensor]) -> int:
    """c; 64 for a file that lacks it: enough to list what is missing."""
    norm = state.get(f"{_PROJECTOR}.min_attention.norm1.weight")
    return 64 if norm is None or norm.numel() == 0 or norm.numel() % 64 else norm.numel()


def _renamed(state: Mapping[str, Tensor], adapter: RealCustomPlusAdapter, base: Collection[str]) -> dict[str, Tensor]:
    """The tensors by this project's names."""
    names, wanted = released_names(adapter), adapter.state_dict()
    given = state.keys() - set(base)
    missing, unexpected = sorted(set(names.values()) - given), sorted(given - set(names.values()))
    if missing or unexpected:
        raise AdapterError(
            f"these are not RealCustom++'s released weights; missing: {_listed(missing)}; "
            f"unexpected: {_listed(unexpected)}."
        )
    wrong = [
        f"{theirs} {tuple(state[theirs].shape)}, not {tuple(wanted[ours].shape)}"
        for ours, theirs in names.items()
        if state[theirs].shape != wanted[ours].shape
    ]
    if wrong:
        raise AdapterError(f"released weights of another shape than this base's: {_listed(wrong)}.")
    return {ours: state[theirs] for ours, theirs in names.items()}


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return (", ".join(items[:_LISTED]) or "none") + more


def main(arguments: list[str] | None = None) -> None:
    """Convert SOURCE, a released file, to TARGET, a folder for `RealCustomPlusAdapter.from_pretrained`."""
    parser = argparse.ArgumentParser(prog="python -m model.adapters.released_weights", description=main.__doc__)
    parser.add_argument("source", metavar="SOURCE", type=Path)
    parser.add_argument("target", metavar="TARGET", type=Path)
    parser.add_argument(
        "--released-forward", action="store_true", help="leave f_high' out of Eq. 9, as the authors' code does"
    )
    options = parser.parse_args(arguments)
    try:
        state = read_state_dict(options.source)
        adapter = convert_released(state, sdxl_unet(), released_forward=options.released_forward)
        adapter.save_pretrained(options.target)
    except (AdapterError, OSError) as error:
        sys.exit(str(error))
    print(f"{options.target}: {adapter.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
