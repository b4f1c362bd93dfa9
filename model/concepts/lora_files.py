"""LoRA files: those of diffusers and peft, and those of kohya's scripts, A1111 and ComfyUI.

Files differ in the names of layers, in the names of the two matrices and in how they are scaled: by alpha / rank, where
alpha stands in the file (kohya), in its metadata (diffusers), or nowhere, which means alpha = rank. Here every scale is
multiplied into the matrices, and what is written has alpha = rank.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors.torch import save_file
from torch import Tensor

from model.concepts.concept import LoraLayer
from model.concepts.model_parts import ModelParts, compvis_names

LORA_FILE = "pytorch_lora_weights.safetensors"
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
#: The ends of the names of tensors: diffusers with peft, peft alone, kohya, diffusers before peft (two forms).
_ENDS = re.compile(
    r"(?P<layer>.+?)[._](?:lora_(?P<peft>[AB])(?:\.\w+)?\.weight"
    r"|(?:lora[._])?(?:linear_layer\.)?(?P<side>down|up)\.weight|(?P<alpha>alpha))"
)


def write_diffusers_lora(file: Path, lora: Mapping[str, LoraLayer]) -> None:
    """Write LoRA as diffusers' `save_lora_weights` does, with the metadata from which peft's configuration is made."""
    state = {f"{name}{_DOWN}": layer.down for name, layer in lora.items()}
    state |= {f"{name}{_UP}": layer.up for name, layer in lora.items()}
    metadata: dict[str, Any] = {}
    for component in dict.fromkeys(name.partition(".")[0] for name in lora):
        own = {name.partition(".")[2]: layer for name, layer in lora.items() if name.startswith(f"{component}.")}
        # peft finds layers by the ends of their names; transformers 5 has dropped this prefix of some.
        ranks = {name.removeprefix("text_model."): layer.rank for name, layer in own.items()}
        rank = max(set(ranks.values()), key=list(ranks.values()).count)
        pattern = {name: other for name, other in ranks.items() if other != rank}
        settings = {"r": rank, "lora_alpha": rank, "rank_pattern": pattern, "alpha_pattern": pattern}
        settings |= {"target_modules": sorted(ranks), "lora_dropout": 0.0, "bias": "none", "peft_type": "LORA"}
        metadata |= {f"{component}.{key}": value for key, value in settings.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    header = {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(metadata, indent=2, sort_keys=True)}
    save_file(tensors, file, metadata=header)


def lora_of_diffusers(state: Mapping[str, Tensor]) -> dict[str, LoraLayer]:
    """The layers in a state that `write_diffusers_lora` wrote.

    Raises:
        KeyError: A matrix is missing.
        ValueError: There are other tensors.
    """
    names = [name.removesuffix(_DOWN) for name in state if name.endswith(_DOWN)]
    if 2 * len(names) != len(state):
        raise ValueError("the LoRA holds other tensors than pairs of lora_A and lora_B")
    return {name: LoraLayer(state[f"{name}{_DOWN}"], state[f"{name}{_UP}"]) for name in names}


def lora_of(
    state: Mapping[str, Tensor], parts: ModelParts, metadata: Mapping[str, Any] | None = None
) -> dict[str, LoraLayer]:
    """The layers in a state of any of the formats, for a model.

    Args:
        state: Of a file.
        parts: Of the model: the names of its layers.
        metadata: diffusers' `lora_adapter_metadata` of the file.

    Raises:
        ValueError: The state is no plain LoRA, or of another model; names a tensor.
    """
    known, found = _joined_names(parts), dict[str, dict[str, Tensor]]()
    for key, tensor in state.items():
        match = _ENDS.fullmatch(key)
        if match is None:  # DoRA, LoHa, LoKr, learned biases, ...
            raise ValueError(f"the file is no plain LoRA: it holds {key}")
        layer = known.get(_joined(match["layer"]))
        if layer is None:
            raise ValueError(f"the LoRA was learned on another backbone than this one, which has no layer for {key}")
        side = "alpha" if match["alpha"] else "down" if (match["peft"] or match["side"]) in ("A", "down") else "up"
        found.setdefault(layer, {})[side] = tensor
    return {layer: _scaled(layer, tensors, metadata or {}) for layer, tensors in found.items()}


def _scaled(layer: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> LoraLayer:
    if "down" not in tensors or "up" not in tensors:
        raise ValueError(f"the LoRA has only one of the two matrices of {layer}")
    down, up = tensors["down"], tensors["up"]
    rank = down.shape[0]
    alpha = tensors["alpha"].item() if "alpha" in tensors else _alpha(layer, rank, metadata)
    return LoraLayer(down, up if alpha == rank else (up.float() * (alpha / rank)).to(up.dtype))


def _alpha(layer: str, rank: int, metadata: Mapping[str, Any]) -> float:
    """alpha by peft's configuration; with rank-stabilized LoRA the one that gives the same scale."""
    component, _, name = layer.partition(".")
    settings = {key.partition(".")[2]: value for key, value in metadata.items() if key.startswith(f"{component}.")}
    if settings.get("use_dora"):
        raise ValueError("the file is no plain LoRA: it is DoRA")
    short = name.removeprefix("text_model.")
    pattern = settings.get("alpha_pattern") or {}
    default = settings.get("lora_alpha", rank)
    alpha = next((value for key, value in pattern.items() if name.endswith(key) or short.endswith(key)), default)
    return float(alpha) * (rank**0.5 if settings.get("use_rslora") else 1.0)


def _joined(name: str) -> str:
    """A layer's name with underscores, as in kohya's files; of older diffusers' files without the processor."""
    name = name.removeprefix("base_model.model.").replace(".processor.", ".").replace(".processor_", ".")
    return re.sub(r"_to_out$", "_to_out_0", name.replace(".", "_")).removesuffix("_lora")


def _joined_names(parts: ModelParts) -> dict[str, str]:
    """Every name with underscores that a file may have for a layer -> the layer's name in `Concept.lora`."""
    old = compvis_names(parts.unet)
    known: dict[str, str] = {}
    for layer in parts.layers():
        component, _, name = layer.partition(".")
        if component == "unet":
            names, prefixes = [name, compvis_name(name, old)], ["unet", "lora_unet", ""]
        else:
            is_second = component.endswith("_2")
            names = [name, name.removeprefix("text_model."), name.replace("q_proj", "to_q").replace("k_proj", "to_k")]
            names[2] = names[2].replace("v_proj", "to_v").replace("out_proj", "to_out")  # diffusers before peft
            prefixes = ["text_encoder_2", "lora_te2"] if is_second else ["text_encoder", "lora_te", "lora_te1"]
        known |= {_joined(f"{prefix}.{one}".removeprefix(".")): layer for prefix in prefixes for one in names}
    return known


_INNER = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_OUTER = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def compvis_name(name: str, blocks: Mapping[str, str]) -> str:
    """The name of a UNet's layer in the original Stable Diffusion code; `blocks` of `compvis_names`."""
    parts = name.split(".")
    for length in (5, 4, 3):
        block = ".".join(parts[:length])
        if block in blocks:
            rest = ".".join(parts[length:])
            return f"{blocks[block]}.{_INNER.get(rest, rest)}".removesuffix(".")
    return _OUTER.get(name, name)


def write_kohya_lora(file: Path, lora: Mapping[str, LoraLayer], parts: ModelParts) -> None:
    """Write LoRA with kohya's names, for A1111, ComfyUI and others: alpha = rank.

    As kohya's scripts do, layers of SDXL's UNet have the original code's names, those of SD diffusers' names. All get
    the largest rank, by rows of zeros: diffusers 0.42 scales attention layers wrongly if ranks differ.
    """
    rank = max(change.rank for change in lora.values())
    old, is_xl = compvis_names(parts.unet), len(parts.text_encoders) > 1
    state: dict[str, Tensor] = {}
    for layer, change in lora.items():
        component, _, name = layer.partition(".")
        if component == "unet":
            joined = f"lora_unet_{compvis_name(name, old) if is_xl else name}"
        else:
            joined = f"lora_te{'2' if component.endswith('_2') else '1' if is_xl else ''}_{name}"
        joined = joined.replace(".", "_")
        for side, tensor, dim in (("down", change.down, 0), ("up", change.up, 1)):
            shape = list(tensor.shape)
            shape[dim] = rank - change.rank
            padded = torch.cat([tensor.detach().cpu(), torch.zeros(shape, dtype=tensor.dtype)], dim)
            state[f"{joined}.lora_{side}.weight"] = padded.contiguous()
        state[f"{joined}.alpha"] = torch.tensor(float(rank))
    save_file(state, file, metadata={"format": "pt"})
