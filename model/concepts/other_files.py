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
from collections.abc import Mapping, Sequence
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

_XTI_LAYERS = 16  # of SD 1.5
_A1111_KEY, _A1111_SAFE_KEY, _STAR = "string_to_param", "emb_params", "*"


def read_other(
    files: Path | Sequence[Path], model: Any, *, placeholder: str | None = None, word: str, subject: str = ""
) -> Concept:
    """Read a concept of another tool for a model.

    Args:
        files: A safetensors file or a pickle (.pt, .bin, .ckpt, .pth), or all files of one concept, such as the
            weights and the embeddings of Custom Diffusion.
        model: As for `load_concept`; the concept must fit it.
        placeholder: By default the file's own, where the format has one: diffusers' and A1111's pickles.
        word: The class word.
        subject: A name for people; by default that of the (first) file.

    Raises:
        ConceptError: A file cannot be read, is of no known format, or is for another backbone, or there is no
            placeholder.
    """
    listed = [files] if isinstance(files, Path) else list(files)
    parts, learned, tokens = ModelParts.of(model), dict[str, Any](), list[ConceptToken]()
    for file in listed:
        found = _learned(file, parts)
        stored = found.pop("placeholder", None)
        learned |= {key: found.pop(key) for key in ("cross_attention", "lora") if key in found}
        if "embeddings" in found or "layer_embeddings" in found:
            tokens.append(_token(file, placeholder or stored, word, subject or listed[0].stem, found))
    if not tokens:
        tokens = [_token(listed[0], placeholder, word, subject or listed[0].stem, {})]
    has_layers = any(token.layer_embeddings for token in tokens)
    other = "xti" if has_layers else "textual_inversion"
    method = "custom_diffusion" if "cross_attention" in learned else "dreambooth" if "lora" in learned else other
    concept = Concept(method=method, backbone="", tokens=tuple(tokens), **learned)
    check_concept(parts, concept, f"the concept {listed[0]}")
    return concept


def _token(file: Path, placeholder: str | None, word: str, subject: str, learned: dict[str, Any]) -> ConceptToken:
    if not placeholder:
        raise ConceptError(f"{file} does not say what its placeholder is: give one.")
    try:
        return ConceptToken(placeholder=placeholder, word=word, subject=subject, **learned)
    except ValueError as error:
        raise ConceptError(f"{file} cannot be used: {error}.") from error


def _learned(file: Path, parts: ModelParts) -> dict[str, Any]:
    """What a file holds, by the names of `Concept` and `ConceptToken`; `placeholder` may be None."""
    state, metadata = read_state(file)
    try:
        if any("custom_diffusion" in key for key in state):
            return {"cross_attention": cross_attention_of(state)}
        layers = _kohya_layers(parts)
        if layers and set(state) == set(layers):
            return {"layer_embeddings": {name: (as_vectors(state[key]),) for key, name in layers.items()}}
        if (found := _embeddings(state)) is not None:
            return found
        if any("lora" in key for key in state):
            return {"lora": lora_of(state, parts, metadata)}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConceptError(f"{file} cannot be used: {error}.") from error
    some = ", ".join(str(key) for key in list(state)[:3]) or "nothing"
    raise ConceptError(f"{file} is no concept in a format that is known: it holds {some}.")


def _embeddings(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """The embeddings, and the placeholder if the file has one; None for other files."""
    if set(ENCODER_NAMES) == set(state):
        return {"embeddings": tuple(as_vectors(state[name]) for name in ENCODER_NAMES)}
    if _A1111_KEY in state:
        stars = state[_A1111_KEY]
        if _STAR not in stars:
            raise ValueError(f"{_A1111_KEY} has no {_STAR!r}")
        return {"placeholder": state.get("name"), "embeddings": (as_vectors(stars[_STAR].detach()),)}
    if _A1111_SAFE_KEY in state:
        return {"embeddings": (as_vectors(state[_A1111_SAFE_KEY]),)}
    if len(state) == 1:
        ((own, tensor),) = state.items()
        if isinstance(tensor, Tensor) and tensor.dim() in (1, 2) and "lora" not in own:
            return {"placeholder": own, "embeddings": (as_vectors(tensor.detach()),)}
    return None


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
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConceptError(f"{file} is damaged: {reason}.") from error
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
    return found if len(found) == len(parts.cross_attention()) == _XTI_LAYERS and len(parts.text_encoders) == 1 else {}
