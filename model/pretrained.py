"""Loading of weights in the forms that models are published in."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import is_offline_mode

from model.checkpoint_files import safetensors_damage

#: A file of weights of diffusers or transformers: name, variant, number of the shard.
WEIGHTS_FILE = re.compile(
    r"(?:model|diffusion_pytorch_model)(?:\.(?P<variant>[A-Za-z0-9_]+))?(?:-\d{5}-of-\d{5})?\.safetensors"
)
#: The variants that are tried for a model on the hub, whose files are not known.
_HUB_VARIANTS = ("fp16",)
#: Ends of names: of files that download programs have not finished, of pickled weights, and of other formats.
_UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".download", ".aria2")
_PICKLED = (".bin", ".ckpt", ".pt", ".pth")
_OTHER_FORMATS = (".msgpack", ".h5", ".onnx", ".gguf", ".safetensors")
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
#: A hub id at a revision.
_HUB_REVISION = re.compile(rf"(?P<name>{_HUB_NAME.pattern})@(?P<revision>[\w./-]+)")


def split_revision(location: str | os.PathLike[str]) -> tuple[str, dict[str, str]]:
    """`org/name@revision` -> the hub id, and the option `revision`; any other location has none.

    A revision is a branch, a tag or a commit. A folder with such a name is a folder.
    """
    text = os.fspath(location)
    match = _HUB_REVISION.fullmatch(text)
    if match is None or Path(text).exists():
        return text, {}
    return match["name"], {"revision": match["revision"]}


def hub_name(location: str | os.PathLike[str]) -> str | None:
    """`org/name` of a hub id with or without a revision; None for a folder or a URI."""
    name, _ = split_revision(location)
    return name if _HUB_NAME.fullmatch(name) and not Path(name).exists() else None


def load_pretrained(kind: Any, location: str | Path, part: str = "", **options: Any) -> Any:
    """Call `from_pretrained` of a class of diffusers or transformers, for safetensors only.

    When only the files of a variant are there (`model.fp16.safetensors`), these are loaded.

    Args:
        kind: The class.
        location: A folder or a hub id, `org/name` or `org/name@revision`.
        part: The subfolder of the location.
        **options: Of `from_pretrained`.

    Raises:
        OSError, ValueError, KeyError: As `from_pretrained`.
    """
    errors: list[OSError] = []
    name, revision = split_revision(location)
    options = {**revision, **options, "subfolder": part, "use_safetensors": True}
    if is_offline_mode():
        options["local_files_only"] = True  # without it diffusers asks the hub for the shards' names
    for variant in weights_variants(name, part):
        try:
            return kind.from_pretrained(name, variant=variant, **options)
        except OSError as error:  # the hub has no file of this variant
            errors.append(error)
    raise errors[0]


def weights_variants(location: str | Path, part: str = "") -> list[str | None]:
    """The variants of a part's weights, as `from_pretrained` takes them, from the first to be tried.

    None is the files without a variant in their names; they are preferred.
    """
    folder = Path(location) / part
    if not folder.is_dir():
        return [None, *_HUB_VARIANTS]
    found = {match["variant"] for file in folder.iterdir() if (match := WEIGHTS_FILE.fullmatch(file.name))}
    if None in found or not found:
        return [None]
    return sorted(found, key=lambda variant: (variant != "fp16", variant))


def weights_problem(folder: Path, part: str = "") -> str | None:
    """What is wrong with the weights of a part of a local model, and what to do; None if they can be loaded.

    Args:
        folder: Of the model.
        part: Its subfolder; the sentence names it.
    """
    subject, prefix = part or "it", f"{part}/" if part else ""
    place = folder / part
    variant = weights_variants(folder, part)[0]  # the one that is loaded; other files may be damaged
    found = {file: WEIGHTS_FILE.fullmatch(file.name) for file in sorted(place.iterdir())}
    files = [file for file, match in found.items() if match and match["variant"] == variant]
    if not files:
        return f"{subject} has {_instead_of_weights(place)}"
    for file in files:
        damage = safetensors_damage(file) if file.is_file() else "is a broken link"
        if damage:
            return f"{prefix}{file.name} {damage}; download it again"
    for name in _missing_shards(place, variant, {file.name for file in files}):
        return f"{prefix}{name} is missing; download the whole model"
    return None


def _instead_of_weights(folder: Path) -> str:
    """What a folder without safetensors has, and what to do."""
    files = [file.name for file in folder.iterdir()]
    unfinished = [name for name in files if name.endswith(_UNFINISHED)]
    if unfinished:
        return f"only a part of its weights ({min(unfinished)}), whose download was cut off; download the whole model"
    pickled = [name for name in files if name.endswith(_PICKLED)]
    if pickled:
        return (
            f"only pickled weights ({min(pickled)}), which can run code when they are loaded; download the safetensors "
            "files, or convert the model with diffusers' or transformers' save_pretrained"
        )
    others = [name for name in files if name.endswith(_OTHER_FORMATS)]
    if others:
        return f"only weights of another format ({min(others)}); download the safetensors files"
    return "no weights (*.safetensors); download the whole model"


def _missing_shards(folder: Path, variant: str | None, found: set[str]) -> Iterator[str]:
    """The shards that the index names and the folder lacks. An unreadable index is left to the loading library."""
    for index in folder.glob("*.safetensors.index*.json"):
        if index.name.endswith(f".index.{variant}.json" if variant else ".safetensors.index.json"):
            try:
                weights = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            except (OSError, ValueError, TypeError, KeyError):
                yield index.name
            else:
                yield from sorted(set(weights.values()) - found)
