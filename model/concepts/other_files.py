"""Concepts in the files of other tools: diffusers, peft, kohya's scripts, A1111, ComfyUI.

    concept = read_other(Path("mug.safetensors"), pipeline, placeholder="[v]", word="mug")
    write_concept(Path("concepts/mug"), concept)

| file | what it holds |
|---|---|
| diffusers' `learned_embeds.safetensors`, `.bin` | one key, the placeholder: (v, c) or (c) |
| SDXL's two encoders | `clip_l`, `clip_g`: (v, c) |
| A1111's and kohya's `.pt` | `string_to_param`: {"*": (v, c)}, `name` |
| A1111's and kohya's `.safetensors` | `emb_params`: (v, c) |
| kohya's XTI for SD 1.5 | `IN01`, ..., `MID`, ..., `OUT11`: (c) or (v, c) |
| diffusers' Custom Diffusion | `<layer>.processor.to_k_custom_diffusion.weight`, ... |
| LoRA | see `model.concepts.lora_files` |

Pickles are read with `weights_only`, so that they can run no code.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint_files import describe_file, safetensors_damage
from model.concepts.concept import ENCODER_NAMES, Concept, ConceptError, ConceptToken
from model.concepts.custom_diffusion_files import cross_attention_of
from model.concepts.folder import as_vectors
from model.concepts.loading import check_concept
from model.concepts.lora_files import lora_of
from model.concepts.model_parts import ModelParts, compvis_names

_A1111_KEY, _A1111_SAFE_KEY, _STAR = "string_to_param", "emb_params", "*"


def read_other(file: Path, model: Any, *, placeholder: str | None = None, word: str, subject: str = "") -> Concept:
    """Read a concept of another tool for a model.

    Args:
        file: A safetensors file or a pickle (.pt, .bin, .ckpt, .pth).
        model: As for `load_concept`; the concept must fit it.
        placeholder: By default the file's own, where the format has one: diffusers' and A1111's pickles.
        word: The class word.
        subject: A name for people; by default the file's.

    Raises:
        ConceptError: The file cannot be read, is of no known format, has no placeholder, or is for another backbone.
    """
    parts = ModelParts.of(model)
    state, metadata = read_state(file)
    token = {"word": word, "subject": subject or file.stem}
    layers = _kohya_layers(parts)
    if any("custom_diffusion" in key for key in state):
        concept = _concept(
            "custom_diffusion", _named(file, placeholder, token), cross_attention=cross_attention_of(state)
        )
    elif layers and set(state) == set(layers):
        by_layer = {layers[key]: (_vectors(state[key], file),) for key in layers}
        concept = _concept("xti", _named(file, placeholder, token, layer_embeddings=by_layer))
    elif (found := _embeddings(state, file)) is not None:
        own, embeddings = found
        concept = _concept("textual_inversion", _named(file, placeholder or own, token, embeddings=embeddings))
    elif any("lora" in key for key in state):
        concept = _concept("dreambooth", _named(file, placeholder, token), lora=lora_of(state, parts, metadata))
    else:
        raise ConceptError(f"{file} is no concept in a format that is known: it holds {', '.join(list(state)[:3])}.")
    check_concept(parts, concept, f"the concept {file}")
    return concept


def _concept(method: str, token: ConceptToken, **learned: Any) -> Concept:
    return Concept(method=method, backbone="", tokens=(token,), **learned)


def _named(file: Path, placeholder: str | None, token: Mapping[str, Any], **learned: Any) -> ConceptToken:
    if not placeholder:
        raise ConceptError(f"{file} does not say what its placeholder is: give one.")
    return ConceptToken(placeholder=placeholder, **token, **learned)


def _embeddings(state: Mapping[str, Any], file: Path) -> tuple[str | None, tuple[Tensor, ...]] | None:
    """The placeholder, if the file has one, and the embeddings; None for other files."""
    if set(ENCODER_NAMES) == set(state):
        return None, tuple(_vectors(state[name], file) for name in ENCODER_NAMES)
    if _A1111_KEY in state:
        stars = state[_A1111_KEY]
        stars = getattr(stars, "_parameters", None) or stars  # a ParameterDict in the oldest files
        if _STAR not in stars:
            raise ConceptError(f"{file} is damaged: {_A1111_KEY} has no {_STAR!r}.")
        return state.get("name"), (_vectors(stars[_STAR], file),)
    if _A1111_SAFE_KEY in state:
        return None, (_vectors(state[_A1111_SAFE_KEY], file),)
    if len(state) == 1:
        ((own, tensor),) = state.items()
        if isinstance(tensor, Tensor) and tensor.dim() in (1, 2):
            return own, (_vectors(tensor, file),)
    return None


def _vectors(tensor: Any, file: Path) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise ConceptError(f"{file} is damaged: it holds a {type(tensor).__name__} where an embedding should be.")
    return as_vectors(tensor.detach().clone())


def read_state(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a safetensors file or a pickle holds, and diffusers' metadata on a LoRA in it.

    Raises:
        ConceptError: It cannot be read, is damaged, or is a pickle that holds more than tensors.
    """
    try:
        if file.suffix == ".safetensors":
            if damage := safetensors_damage(file):
                raise ConceptError(f"{file} {damage}.")
            with safe_open(file, "pt") as opened:
                header = opened.metadata() or {}
            return load_file(file), json.loads(header.get(LORA_ADAPTER_METADATA_KEY, "{}"))
        with torch.serialization.safe_globals([torch.nn.ParameterDict]):
            state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConceptError(f"{file} cannot be read: {error.strerror or error}.") from error
    except pickle.UnpicklingError as error:
        raise ConceptError(
            f"{file} is {describe_file(file)} that holds more than tensors, or a damaged one."
        ) from error
    except (SafetensorError, RuntimeError, ValueError, EOFError, KeyError) as error:
        if isinstance(error, ConceptError):
            raise
        raise ConceptError(f"{file} is damaged: {str(error).splitlines()[0]}.") from error
    if isinstance(state, Tensor):
        return {"": state}, {}
    if not isinstance(state, Mapping):
        raise ConceptError(f"{file} is no concept: it holds a {type(state).__name__}.")
    return dict(state), {}


def write_a1111(file: Path, token: ConceptToken) -> None:
    """Write a token's embeddings for A1111, ComfyUI and kohya's scripts, which take the file's name as the placeholder.

    Args:
        file: ".safetensors", or ".pt" for one text encoder only.
        token: Without embeddings for each layer.

    Raises:
        ConceptError: The token has none, or the format cannot hold them.
    """
    if not token.embeddings:
        raise ConceptError(f"the concept {token.placeholder!r} has no embeddings for A1111's format.")
    tensors = [tensor.detach().cpu().contiguous() for tensor in token.embeddings]
    if file.suffix == ".safetensors":
        save_file(dict(zip(ENCODER_NAMES if len(tensors) > 1 else (_A1111_SAFE_KEY,), tensors, strict=True)), file)
    elif len(tensors) > 1:
        raise ConceptError(f"{file}: the embeddings of SDXL need a .safetensors file.")
    else:
        names = {"name": token.placeholder, "step": 0, "sd_checkpoint": None, "sd_checkpoint_name": None}
        torch.save({"string_to_token": {_STAR: 265}, _A1111_KEY: {_STAR: tensors[0]}, **names}, file)


def write_kohya_xti(file: Path, token: ConceptToken, model: Any) -> None:
    """Write a token of XTI as kohya's scripts do: 16 keys, for SD 1.5.

    Raises:
        ConceptError: It is no token of XTI, or the model has other layers than SD 1.5.
    """
    layers = _kohya_layers(ModelParts.of(model))
    if not layers or sorted(token.layer_embeddings) != sorted(layers.values()):
        raise ConceptError(f"{file}: kohya's XTI format is for the 16 cross-attention layers of Stable Diffusion 1.5.")
    # One vector is (c) there.
    save_file(
        {key: token.layer_embeddings[name][0].squeeze(0).cpu().contiguous() for key, name in layers.items()}, file
    )


def _kohya_layers(parts: ModelParts) -> dict[str, str]:
    """kohya's keys -> the cross-attention layers, in the order of the UNet; empty if it has other layers than SD 1.5.

    A key is the place of a block in the original code: `input_blocks.1` is IN01.
    """
    blocks, found = compvis_names(parts.unet), {}
    for layer in parts.cross_attention():
        block = blocks[layer.partition(".transformer_blocks.")[0]]
        side, _, place = block.removesuffix(".1").partition("_")
        number = place.partition(".")[2]
        key = "MID" if side == "middle" else f"{'IN' if side == 'input' else 'OUT'}{int(number):02d}"
        found[key] = layer
    return found if len(found) == len(parts.cross_attention()) and len(parts.text_encoders) == 1 else {}
