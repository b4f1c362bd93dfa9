"""Loading an adapter of either method: a saved folder knows its own."""

from __future__ import annotations

import os
from typing import Any

from model.adapters.adapter import AdapterError, RealCustomPlusAdapter, VisualAdapter
from model.adapters.realcustom import RealCustomAdapter

_KINDS: dict[str, type[VisualAdapter]] = {kind.__name__: kind for kind in (RealCustomAdapter, RealCustomPlusAdapter)}


def load_adapter(folder_or_hub_id: str | os.PathLike[str], **options: Any) -> VisualAdapter:
    """The adapter in a folder or on the hub, of the method that its `config.json` names.

    Raises:
        AdapterError: it is of neither method, or see `VisualAdapter.from_pretrained`.
        OSError: no such folder or hub id, or a file in it that cannot be read.
    """
    name = VisualAdapter.load_config(folder_or_hub_id, **options).get("_class_name")
    if name not in _KINDS:
        raise AdapterError(f"{folder_or_hub_id} holds a {name}; an adapter is one of {', '.join(_KINDS)}.")
    return _KINDS[name].from_pretrained(folder_or_hub_id, **options)
