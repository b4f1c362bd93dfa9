"""The files of a backbone in diffusers' layout, checked before anything is loaded. Imports no torch.

Models come in several forms: with all files, with those of a variant only (`*.fp16.safetensors`), with pickled weights,
as one file, half downloaded. What can be loaded is loaded; the rest is named for what it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.checkpoint_files import conversion, describe_file
from model.errors import BackboneError
from model.files import TextError, read_text
from model.pretrained import weights_problem

_PARTS_WITH_WEIGHTS = ("unet", "vae", "text_encoder")
_FILES = {
    **{part: "config.json" for part in (*_PARTS_WITH_WEIGHTS, "text_encoder_2")},
    "tokenizer": "tokenizer_config.json",
    "tokenizer_2": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}


def check_backbone_files(location: str | Path) -> None:
    """Check what is at a local location; other locations (hub ids) are left to the hub.

    Raises:
        BackboneError: It is a file, or a folder that is no backbone; says what it is, and what to do.
    """
    place = Path(location)
    if place.is_file():
        raise BackboneError(f"backbone {place}: this is {describe_file(place)}; {conversion(place)}.")
    if place.is_dir():
        _check_folder(place)


def check_model_files(folder: Path, part: str = "", *, takes_pickled: bool = False) -> None:
    """Check the folder of one model with weights, such as an image encoder: its configuration, and whole weights.

    Args:
        folder: With the model's files, or with the subfolder that has them.
        part: The subfolder.
        takes_pickled: `pytorch_model.bin` will do, which transformers reads without running code.

    Raises:
        BackboneError: Something is missing or damaged.
    """
    place = folder / part
    if not place.is_dir():
        raise BackboneError(f"model {folder}: there is no folder {place}; download the whole model.")
    _read_config(place / "config.json", "model")
    if takes_pickled and (place / "pytorch_model.bin").is_file():
        return
    if problem := weights_problem(folder, part):
        raise BackboneError(f"model {folder}: {problem}.")


def _check_folder(folder: Path) -> None:
    if not (folder / "unet").is_dir():
        raise BackboneError(f"backbone {folder}: {_other_folder(folder)}.")
    is_xl = _read_config(folder / "unet" / "config.json").get("addition_embed_type") == "text_time"
    for part, name in _FILES.items():
        if part.endswith("_2") and not is_xl:
            continue
        if not (folder / part / name).is_file():
            what = "there is no" if not (folder / part / name).is_symlink() else "there is only a broken link for"
            raise BackboneError(f"backbone {folder}: {what} {part}/{name}; download the whole model.")
    for part in (*_PARTS_WITH_WEIGHTS, *(["text_encoder_2"] if is_xl else [])):
        if problem := weights_problem(folder, part):
            raise BackboneError(f"backbone {folder}: {problem}.")


def _read_config(file: Path, kind: str = "backbone") -> dict[str, Any]:
    try:
        config = json.loads(read_text(file))
    except FileNotFoundError as error:
        raise BackboneError(f"{kind}: there is no {file}; download the whole model.") from error
    except (OSError, ValueError, TextError) as error:
        raise BackboneError(f"{kind}: {file} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise BackboneError(f"{kind}: {file} holds no JSON object.")
    return config


def _other_folder(folder: Path) -> str:
    """What a folder without a UNet is, and what to do."""
    inner = [path.parent for path in sorted(folder.glob("*/unet")) + sorted(folder.glob("snapshots/*/unet"))]
    if inner:
        return f"this is no model itself, but it holds one: give {inner[0]}"
    if (folder / "transformer").is_dir():
        return "this is a model with a transformer, such as Flux or Stable Diffusion 3; one with a UNet is needed"
    if (folder / "adapter_config.json").is_file() or (folder / "pytorch_lora_weights.safetensors").is_file():
        return "this is a LoRA; give the model that it was made for"
    if (folder / "config.json").is_file():
        return f"this is one part of a model; give the folder above it, {folder.parent}"
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.ckpt")]):
        return f"this folder holds {file.name}, {describe_file(file)}; {conversion(file)}"
    return "this folder is not in diffusers' layout: there is no unet/; give the folder that model_index.json is in"
