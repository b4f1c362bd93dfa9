"""How an adapter is used: `usage.json` beside its weights, written when it is trained."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from transformers.utils import cached_file

from model.errors import ModelError
from model.files import read_text
from model.guidance.settings import InferenceSettings
from model.pretrained import hub_name
from model.settings import STRICT

USAGE_FILE = "usage.json"
_WHERE = ("subfolder", "revision", "cache_dir", "local_files_only", "token", "proxies", "force_download")


class UsageError(ModelError):
    """The adapter does not say how it is used."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AdapterUsage:
    """What an adapter was trained with, and what its pictures are made with."""

    image_encoders: dict[str, Any]
    """Arguments of `ImageEncoders.from_pretrained`: image_encoders, shallow_layers, reference_size, tiles."""
    inference: InferenceSettings
    """The defaults of a request."""
    base_model: str | None
    """Hub id of the base model; null: a folder of the machine that trained it."""

    def write(self, folder: Path) -> None:
        """Write `usage.json`."""
        text = json.dumps(asdict(self), indent=2, sort_keys=True)
        (folder / USAGE_FILE).write_text(f"{text}\n", encoding="utf-8")

    def local_encoders(self) -> list[str]:
        """The image encoders that are folders of this machine: neither parts of the base model nor hub ids."""
        locations = self.image_encoders.get("image_encoders", [])
        return [one for one in locations if "/" in one and hub_name(one) is None]


def read_usage(folder_or_hub_id: str | os.PathLike[str], **options: Any) -> AdapterUsage | None:
    """The usage of an adapter in a folder or on the hub; None without `usage.json`.

    `options` are those of `from_pretrained`; those that do not say where the file is are left out.

    Raises:
        UsageError: The file is damaged.
        OSError: The folder or hub id does not exist.
    """
    where = {name: options[name] for name in _WHERE if options.get(name) is not None}
    path = cached_file(folder_or_hub_id, USAGE_FILE, _raise_exceptions_for_missing_entries=False, **where)
    if path is None:
        return None
    try:
        return TypeAdapter(AdapterUsage).validate_json(read_text(Path(path)))
    except ValidationError as error:
        first = error.errors()[0]
        entry = ".".join(map(str, first["loc"])) or "its text"
        raise UsageError(f"{path}: {entry}: {first['msg']}; save the adapter again with this version.") from error
