"""Loading of weights in the forms that models are published in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

#: A file of weights of diffusers or transformers: name, variant, number of the shard.
WEIGHTS_FILE = re.compile(
    r"(?:model|diffusion_pytorch_model)(?:\.(?P<variant>[A-Za-z0-9_]+))?(?:-\d{5}-of-\d{5})?\.safetensors"
)
#: The variants that are tried for a model on the hub, whose files are not known.
_HUB_VARIANTS = ("fp16",)


def load_pretrained(kind: Any, location: str | Path, part: str = "", **options: Any) -> Any:
    """Call `from_pretrained` of a class of diffusers or transformers, for safetensors only.

    When only the files of a variant are there (`model.fp16.safetensors`), these are loaded.

    Args:
        kind: The class.
        location: A folder or a hub id.
        part: The subfolder of the location.
        **options: Of `from_pretrained`.

    Raises:
        OSError, ValueError, KeyError: As `from_pretrained`.
    """
    errors: list[OSError] = []
    for variant in weights_variants(location, part):
        try:
            return kind.from_pretrained(str(location), subfolder=part, variant=variant, use_safetensors=True, **options)
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
