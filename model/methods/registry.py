"""All methods by name, the method of an adapter, and loading an adapter of any method."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from model.adapters.adapter import AdapterError, VisualAdapter
from model.methods.method import Method
from model.methods.realcustom import RealCustom
from model.methods.realcustom_plus_plus import RealCustomPlusPlus
from model.methods.release import RealCustomPlusPlusRelease
from model.pretrained import split_revision

METHODS: dict[str, Method[Any]] = {method.name: method for method in (RealCustomPlusPlus(), RealCustom())}
#: What paints in the place of RealCustom++ with an adapter whose configuration says `inference: release`.
_RELEASE = RealCustomPlusPlusRelease()


def method_of(adapter: VisualAdapter) -> Method[Any]:
    """The method whose class the adapter has, as its configuration says."""
    return _of_config(_by_class_name()[type(adapter).__name__], adapter.config)


def read_method(folder_or_hub_id: str | os.PathLike[str], **options: Any) -> tuple[Method[Any], Mapping[str, Any]]:
    """The method of an adapter in a folder or on the hub, and its configuration; see `load_adapter`.

    Raises:
        AdapterError: no method has a class of the name in its `config.json`.
        OSError: the folder or hub id does not exist, or one of its files cannot be read.
    """
    location, revision = split_revision(folder_or_hub_id)
    config = VisualAdapter.load_config(location, **{**revision, **options})
    name, methods = config.get("_class_name"), _by_class_name()
    if name not in methods:
        raise AdapterError(f"{folder_or_hub_id} holds a {name}; an adapter is one of {', '.join(sorted(methods))}.")
    return _of_config(methods[name], config), config


def load_adapter(folder_or_hub_id: str | os.PathLike[str], **options: Any) -> VisualAdapter:
    """The adapter in a folder or on the hub, of the class that its `config.json` names.

    A hub id is `org/name` or `org/name@revision`.

    Raises:
        AdapterError: no method has a class of this name; see also `VisualAdapter.from_pretrained`.
        OSError: the folder or hub id does not exist, or one of its files cannot be read.
    """
    method, _ = read_method(folder_or_hub_id, **options)
    return method.adapter_class.from_pretrained(folder_or_hub_id, **options)


def _of_config(method: Method[Any], config: Mapping[str, Any]) -> Method[Any]:
    return _RELEASE if config.get("inference") == "release" else method


def _by_class_name() -> dict[str, Method[Any]]:
    return {method.adapter_class.__name__: method for method in METHODS.values()}
