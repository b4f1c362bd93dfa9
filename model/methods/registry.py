"""All methods by name, the method of an adapter, and loading an adapter of any method."""

from __future__ import annotations

import os
from typing import Any

from model.adapters.adapter import AdapterError, VisualAdapter
from model.methods.method import Method
from model.methods.realcustom import RealCustom
from model.methods.realcustom_plus_plus import RealCustomPlusPlus
from model.pretrained import split_revision

METHODS: dict[str, Method[Any]] = {method.name: method for method in (RealCustomPlusPlus(), RealCustom())}


def method_of(adapter: VisualAdapter) -> Method[Any]:
    """The method whose class the adapter has."""
    return _by_class_name()[type(adapter).__name__]


def load_adapter(folder_or_hub_id: str | os.PathLike[str], **options: Any) -> VisualAdapter:
    """The adapter in a folder or on the hub, of the class that its `config.json` names.

    A hub id is `org/name` or `org/name@revision`.

    Raises:
        AdapterError: no method has a class of this name; see also `VisualAdapter.from_pretrained`.
        OSError: the folder or hub id does not exist, or one of its files cannot be read.
    """
    location, revision = split_revision(folder_or_hub_id)
    options = {**revision, **options}
    name, methods = VisualAdapter.load_config(location, **options).get("_class_name"), _by_class_name()
    if name not in methods:
        raise AdapterError(f"{folder_or_hub_id} holds a {name}; an adapter is one of {', '.join(sorted(methods))}.")
    return methods[name].adapter_class.from_pretrained(location, **options)


def _by_class_name() -> dict[str, Method[Any]]:
    return {method.adapter_class.__name__: method for method in METHODS.values()}
