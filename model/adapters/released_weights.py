"""Import of the weights that the authors of RealCustom++ released (for SDXL) into `RealCustomPlusAdapter`.

    python -m model.adapters.released_weights RealCustom_highres.pth adapter/

The files are state dicts of the authors' UNet: .safetensors, or pickles (.pth, .bin) that are read with
`torch.load(weights_only=True)`, which refuses everything but tensors. There are two forms:

    high resolution only         min_attention, projector, projector_base      f_ci = MLP(f_deep) + f_high'
    high resolution and shallow  also min_attention2, projector2               f_ci = [f_shallow', MLP(f_deep)]

The authors' forward pass of the second form discards the sum with f_high' that it has computed: it departs from Eq. 9,
and is row 2 of Table VIII. The adapter computes the same, without these weights.

The adapter's configuration says `inference: release`: it is fed and guided as in the authors' code
(`model.methods.release`).
"""

import argparse
import pickle
import sys
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.adapters.adapter import AdapterError, cross_attention_widths
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.adapters.state_dicts import released_state

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
_HIGH = (f"{_PROJECTOR}.min_attention.", f"{_PROJECTOR}.projector.")
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


def convert_released(state: Mapping[str, Any], unet: UNet2DConditionModel) -> RealCustomPlusAdapter:
    """The adapter of a released state dict, which paints as the authors do; its weights keep their precision.

    Weights of different precisions get the one that holds all of them.

    Args:
        state: see `released_state`; it may contain the base UNet's own weights and other keys too (`stray_names`).
        unet: the base model that the weights were trained for, or `sdxl_unet()`.

    Raises:
        AdapterError: keys are missing, or tensors have a wrong shape, are no floating-point numbers, or are not finite
            (the message lists them); see also `released_state`.
    """
    state = released_state(state)
    shallow = any(key.startswith(_SHALLOW) for key in state)
    widths = (cross_attention_widths(unet), _image_width(state), unet.config.cross_attention_dim)
    branches: dict[str, Any] = {"cross_scale": None} if shallow else {"cross_layer": None}
    with torch.device("meta"):
        adapter = RealCustomPlusAdapter(*widths, **branches, inference="release")
    adapter.load_state_dict(_weights(state, adapter), assign=True)
    return adapter


def stray_names(state: Mapping[str, Any], adapter: RealCustomPlusAdapter, unet: UNet2DConditionModel) -> list[str]:
    """Names that neither the adapter nor its base has, besides those without effect in the authors' forward pass.

    Args:
        state: as `released_state` gives it.
        adapter: made from it.
        unet: see `convert_released`.
    """
    known = set(released_names(adapter).values()) | unet.state_dict().keys()
    return sorted(name for name in state.keys() - known if not name.startswith(_HIGH))


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
        AdapterError: see `read_content`; or the file is no state dict.
        OSError: the file does not exist.
    """
    state = read_content(path)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise AdapterError(f"{path} is not a state dict, which has a tensor for each name.")
    return state


def read_content(path: str | Path) -> Any:
    """What is in a .safetensors file, or in a pickle of tensors, plain values, and dicts and lists of them.

    Raises:
        AdapterError: the file is damaged, contains more, or is a folder.
        OSError: the file does not exist.
    """
    path = Path(path)
    if path.is_dir():
        raise AdapterError(f"{path} is a folder; give the file with the weights.")
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise AdapterError(f"{path} is damaged, or contains more than tensors.") from error


def sdxl_unet() -> UNet2DConditionModel:
    """A UNet of SDXL's shape without weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(**SDXL_UNET)


def _image_width(state: Mapping[str, Any]) -> int:
    """c; 64 for a file that lacks it: enough to list what is missing."""
    norms = (state.get(f"{_PROJECTOR}.min_attention{number}.norm1.weight") for number in ("2", ""))
    widths = [norm.numel() for norm in norms if isinstance(norm, Tensor) and norm.numel() and norm.numel() % 64 == 0]
    return widths[0] if widths else 64


def _weights(state: Mapping[str, Any], adapter: RealCustomPlusAdapter) -> dict[str, Tensor]:
    """The tensors by this project's names, in one dtype."""
    names, wanted = released_names(adapter), adapter.state_dict()
    if missing := sorted(name for name in names.values() if not isinstance(state.get(name), Tensor)):
        raise AdapterError(f"these are not RealCustom++'s released weights; missing: {_listed(missing)}.")
    found = {ours: state[theirs] for ours, theirs in names.items()}
    wrong = [
        f"{names[ours]} {tuple(tensor.shape)}, not {tuple(wanted[ours].shape)}"
        for ours, tensor in found.items()
        if tensor.shape != wanted[ours].shape
    ]
    if wrong:
        raise AdapterError(f"released weights of another shape than this base's: {_listed(wrong)}.")
    if other := [f"{names[ours]} ({_kind(one)})" for ours, one in found.items() if not _is_plain(one)]:
        raise AdapterError(f"released weights must be floating-point numbers, but these are not: {_listed(other)}.")
    if broken := [names[ours] for ours, one in found.items() if not one.to(_precision(one)).isfinite().all()]:
        raise AdapterError(f"released weights that are NaN or infinite: {_listed(broken)}; download the file again.")
    dtype = reduce(torch.promote_types, {_precision(one) for one in found.values()})
    return _with_own_memory({ours: tensor.detach().to(dtype).contiguous() for ours, tensor in found.items()})


def _with_own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors that share memory with others, which safetensors does not write; the others as they are."""
    seen: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage()
        own[name] = tensor.clone() if memory.nbytes() != tensor.nbytes or memory.data_ptr() in seen else tensor
        seen.add(memory.data_ptr())
    return own


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has its floating-point numbers in memory."""
    return tensor.is_floating_point() and tensor.layout is torch.strided and not tensor.is_meta


def _kind(tensor: Tensor) -> str:
    kinds = [tensor.dtype, tensor.layout, tensor.device.type]
    return " ".join(str(kind).removeprefix("torch.") for kind in kinds if kind not in (torch.strided, "cpu"))


def _precision(tensor: Tensor) -> torch.dtype:
    """The dtype of a tensor; for numbers of 8 bits, which layers cannot compute with, one that holds them exactly."""
    return torch.float16 if tensor.itemsize == 1 else tensor.dtype


def _listed(items: list[str], most: int = _LISTED) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return (", ".join(items[:most]) or "none") + more


def main(arguments: list[str] | None = None) -> None:
    """Convert SOURCE, a released file, to TARGET, a folder for `RealCustomPlusAdapter.from_pretrained`."""
    parser = argparse.ArgumentParser(prog="python -m model.adapters.released_weights", description=main.__doc__)
    parser.add_argument("source", metavar="SOURCE", type=Path)
    parser.add_argument("target", metavar="TARGET", type=Path)
    options = parser.parse_args(arguments)
    unet = sdxl_unet()
    try:
        state = released_state(read_content(options.source))
        adapter = convert_released(state, unet)
        adapter.save_pretrained(options.target)
    except (AdapterError, OSError) as error:
        named = str(options.source) in str(error)
        sys.exit(str(error) if named else f"{options.source}: {error}")
    print(f"{options.target}: {adapter.num_parameters():,} parameters, inference: {adapter.config['inference']}")
    if stray := stray_names(state, adapter, unet):
        print(f"left out, for neither the adapter nor its base has them: {_listed(stray, 100)}")


if __name__ == "__main__":
    main()
