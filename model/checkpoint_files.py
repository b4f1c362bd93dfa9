"""What a file of weights is, found without loading it: from its first bytes, and the names of its tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path

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

#: Kinds of safetensors files by the names of their tensors; the first that fits counts.
_TENSORS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("a LoRA", lambda name: any(part in name for part in ("lora_", ".lora", "hada_", "lokr_"))),
    ("a ControlNet", lambda name: name.startswith(("control_model.", "controlnet_"))),
    ("a checkpoint of Flux", lambda name: "double_blocks." in name),
    ("a checkpoint of Stable Diffusion 3", lambda name: "joint_blocks." in name),
    ("a checkpoint of Stable Diffusion XL in one file", lambda name: name.startswith("conditioner.embedders.")),
    ("a checkpoint of Stable Diffusion in one file", lambda name: name.startswith("model.diffusion_model.")),
    ("an embedding of Textual Inversion", lambda name: name in ("emb_params", "clip_l", "clip_g")),
    ("a UNet's weights alone", lambda name: name.startswith("down_blocks.")),
    ("a VAE's weights alone", lambda name: name.startswith(("encoder.", "decoder.", "first_stage_model."))),
    ("a text encoder's weights alone", lambda name: name.startswith("text_model.")),
)

#: Kinds that diffusers' `from_single_file` reads, with its class.
CONVERTIBLE = {
    "a checkpoint of Stable Diffusion XL in one file": "StableDiffusionXLPipeline",
    "a checkpoint of Stable Diffusion in one file": "StableDiffusionPipeline",
}


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


def _header(file: Path) -> dict[str, dict[str, list[int]]] | None:
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
