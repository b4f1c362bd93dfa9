"""Paths in the configuration. Types mark them; they become absolute, for a stage runs in another working directory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.config.keys import configuration_keys, key_of
from pipelines.config.words import describe
from pipelines.errors import UsageError
from stages.settings import PathKind

#: A mistyped URI, which would be a folder of that name.
_ONE_SLASH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)")


def with_absolute_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values by dotted key, with every path absolute.

    Raises:
        UsageError: A path that cannot be one.
    """
    found = dict(values)
    for name, value in values.items():
        kind = key_of(name).path_kind
        if kind is not None and value is not None:
            parts = [_absolute(name, kind, path) for path in (value if isinstance(value, list) else [value])]
            found[name] = parts if isinstance(value, list) else parts[0]
    return found


def local_paths(values: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """The files and folders that values name, each with its key; hub ids, URIs and parts of the backbone are none."""
    known = configuration_keys()
    for name, value in values.items():
        if known[name].path_kind is not None and value is not None:
            for path in value if isinstance(value, list) else [value]:
                if Path(path).is_absolute():
                    yield name, Path(path)


def _absolute(name: str, kind: PathKind, path: str) -> str:
    if "://" in path:
        if not kind.uri:
            raise UsageError(f"{name} takes {describe(key_of(name).type)}, not the URI {path!r}.")
        return path
    if kind.uri and _ONE_SLASH.match(path):
        raise UsageError(f"{name} is {path!r}: a URI has two slashes after the colon, as s3://bucket/folder.")
    try:
        place = Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise UsageError(f"{name} is {path!r}, but there is no such user.") from error
    return path if _is_other_name(kind, path, place) else str(place)


def _is_other_name(kind: PathKind, path: str, place: Path) -> bool:
    """Whether the text is a hub id or another name that is no path."""
    if path in kind.names or (kind.backbone_part and "/" not in path):
        return True
    if kind.hub_owner and path.count("/") != 1:
        return False
    return kind.hub_id and not path.startswith((".", "/", "~")) and not os.path.exists(place)
