"""What a file of weights is, found without loading it: from its first bytes, and the names of its tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_MAX_HEADER_BYTES = 100_000_000  # the safetensors library's limit

#: Kinds of files by their first bytes.
_SIGNATURES = (
    (_LFS_POINTER, "a pointer of Git LFS, whose file was not downloaded (git lfs pull)"),
    (b"GGUF", "a quantized model in GGUF"),
    (b"PK\x03\x04", "a pickled checkpoint or an archive"),
    (b"\x80\x02", "a pickled checkpoint"),
    (b"\x1f\x8b", "an archive"),
    (b"<", "a web page, not a model"),
)

_XL = ("conditioner.embedders.", "model.diffusion_model.label_emb.")
#: Kinds of safetensors files by the names of their tensors; the first that fits counts.
_TENSORS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("a LoRA", lambda name: any(part in name for part in ("lora_", ".lora", "hada_", "lokr_"))),
    ("a ControlNet", lambda name: name.startswith(("control_model.", "controlnet_"))),
    ("a checkpoint of Flux", lambda name: "double_blocks." in name),
    ("a checkpoint of Stable Diffusion 3", lambda name: "joint_blocks." in name),
    ("a checkpoint of Stable Diffusion XL in one file", lambda name: name.startswith(_XL)),
    ("a checkpoint of Stable Diffusion in one file", lambda name: name.startswith("model.diffusion_model.")),
    ("an embedding of Textual Inversion", lambda name: name in ("emb_params", "clip_l", "clip_g")),
    ("a UNet's weights alone", lambda name: name.startswith("down_blocks.")),
    ("a VAE's weights alone", lambda name: name.startswith(("encoder.", "decoder.", "first_stage_model."))),
    ("a text encoder's weights alone", lambda name: name.startswith("text_model.")),
)

#: Kinds that diffusers' `from_single_file` reads, with its class and a VAE for files that have none.
_CONVERTIBLE = {
    "a checkpoint of Stable Diffusion XL in one file": ("StableDiffusionXLPipeline", "stabilityai/sdxl-vae"),
    "a checkpoint of Stable Diffusion in one file": ("StableDiffusionPipeline", "stabilityai/sd-vae-ft-mse"),
}
#: A part of a checkpoint in one file, by the starts of its tensors' names.
_TEXT_ENCODERS = ("cond_stage_model.", "conditioner.embedders.")
_VAE = ("first_stage_model.",)
_FIRST_CONVOLUTION = "model.diffusion_model.input_blocks.0.0.weight"  # (C, channels of the latents, 3, 3)
_LAYOUT = "a folder in diffusers' layout is needed, with unet/, vae/ and the other parts"


def describe_file(file: Path) -> str:
    """The kind of a file: "a LoRA", "a checkpoint of Stable Diffusion in one file", ..., "a single file"."""
    with file.open("rb") as stream:
        start = stream.read(64)
    for signature, kind in _SIGNATURES:
        if start.startswith(signature):
            return kind
    names = tensor_names(file)
    if names is None:
        return "a single file"
    return next((kind for kind, fits in _TENSORS if any(map(fits, names))), "a single file of weights")


def conversion(file: Path) -> str:
    """How a file becomes a folder in diffusers' layout, or what is needed in its place."""
    pipeline, vae = _CONVERTIBLE.get(describe_file(file), (None, None))
    header = _header(file) or {}
    if pipeline is None:
        return _LAYOUT
    channels = header.get(_FIRST_CONVOLUTION, {}).get("shape", [])[1:2]
    if channels and channels != [4]:
        return f"its UNet takes {channels[0]} channels, as those for inpainting or editing do; give its base model"
    if not _has(header, _TEXT_ENCODERS):
        return f"it has no text encoder: it is the UNet of a checkpoint alone; {_LAYOUT}"
    if "XL" in pipeline and not _has(header, ("conditioner.embedders.1.",)):
        return "it has one text encoder, as SDXL's refiner; give the base model"
    more = "" if _has(header, _VAE) else f', vae=diffusers.AutoencoderKL.from_pretrained("{vae}")'
    return (
        "convert it to diffusers' layout with "
        f'diffusers.{pipeline}.from_single_file("{file}"{more}).save_pretrained("FOLDER") and give that folder '
        '(without a network, from_single_file also needs config="FOLDER OF ITS BASE MODEL")'
    )


def _has(header: Collection[str], starts: tuple[str, ...]) -> bool:
    return any(name.startswith(starts) for name in header)


def tensor_names(file: Path) -> Collection[str] | None:
    """The names of the tensors in a safetensors file; None for another file."""
    header = _header(file)
    return None if header is None else [name for name in header if name != "__metadata__"]


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]] | None:
    """The shapes of the tensors in a safetensors file; None for another file."""
    header = _header(file)
    if header is None:
        return None
    return {name: tuple(entry.get("shape", ())) for name, entry in header.items() if name != "__metadata__"}


def safetensors_damage(file: Path) -> str | None:
    """What is wrong with a safetensors file as a whole; None if its header and its size fit together."""
    with file.open("rb") as stream:
        if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
            return "is a pointer of Git LFS; fetch the file with git lfs pull"
    header = _header(file)
    if header is None:
        return "is not a safetensors file, or was cut off in its header"
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    with file.open("rb") as stream:
        needed = 8 + int.from_bytes(stream.read(8), "little") + max(ends, default=0)
    if file.stat().st_size < needed:
        return f"has {file.stat().st_size} of {needed} bytes: its download was cut off"
    return None


def _header(file: Path) -> dict[str, dict[str, Any]] | None:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER_BYTES, file.stat().st_size):
            return None
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError):
            return None
    is_table = isinstance(header, dict) and all(
        name == "__metadata__" or (isinstance(entry, dict) and _are_offsets(entry.get("data_offsets")))
        for name, entry in header.items()
    )
    return header if is_table else None


def _are_offsets(offsets: object) -> bool:
    return isinstance(offsets, list) and len(offsets) == 2 and all(isinstance(offset, int) for offset in offsets)
