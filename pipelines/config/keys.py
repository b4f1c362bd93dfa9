"""The keys of the configuration, found in the types of its sections: `filter.min_aesthetic` and so on."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.errors import UsageError
from stages.config import Config
from stages.settings import PathKind, is_of_operation, marks_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """One setting.

    Attributes:
        name: Dotted.
        type: With what is annotated.
        description: One or two sentences, or nothing.
    """

    name: str
    type: Any
    description: str

    @property
    def of_operation(self) -> bool:
        """Whether it changes only how results are made."""
        return is_of_operation(self.type)

    @property
    def path_kind(self) -> PathKind | None:
        """What it names besides files and folders, when it names those."""
        return next((mark for mark in marks_of(self.type) if isinstance(mark, PathKind)), None)


@functools.cache
def configuration_keys() -> dict[str, Key]:
    """Every key by its dotted name."""
    return {key.name: key for key in _walk(Config, "")}


def key_of(name: str) -> Key:
    """The key called `name`.

    Raises:
        UsageError: It is a section, or there is no such key; names what is near.
    """
    known = configuration_keys()
    if name in known:
        return known[name]
    inside = [key for key in known if key.startswith(f"{name}.")]
    if inside:
        raise UsageError(f"{name!r} is a section of the configuration; set one of {', '.join(inside)}.")
    raise UsageError(f"There is no configuration key {name!r}.{nearest(name, list(known))}")


def flat_values(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Every value by its dotted key: {"filter.min_aesthetic": 5.0, ...}."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            values |= flat_values(value, f"{prefix}{field.name}.")
        else:
            values[prefix + field.name] = value
    return values


def nearest(name: str, names: Sequence[str]) -> str:
    """A hint for somebody who mistyped `name`: " Did you mean 'filter'?", or nothing."""
    # A key whose section was left out is nearer than one that merely resembles it.
    endings = [known for known in names if known.endswith("." + name)]
    found = endings or difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f" Did you mean {' or '.join(map(repr, found[:3]))}?" if found else ""


def without_marks(kind: Any) -> Any:
    """The type without what is annotated."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


def members(kind: Any) -> list[Any]:
    """The types that a union joins, without what is annotated; the type alone when it is no union."""
    plain = without_marks(kind)
    if typing.get_origin(plain) in (types.UnionType, typing.Union):
        return [member for part in typing.get_args(plain) for member in members(part)]
    return [plain]


def is_section(kind: Any) -> bool:
    """Whether a field of this type is a section of its own."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


@functools.cache
def fields_of(section: Any) -> dict[str, Any]:
    """The types of a section's fields, with what is annotated."""
    hints = typing.get_type_hints(section, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(section)}


def _walk(section: Any, prefix: str) -> Iterator[Key]:
    for name, kind in fields_of(section).items():
        if is_section(kind):
            yield from _walk(kind, f"{prefix}{name}.")
        else:
            text = section.__pydantic_fields__[name].description
            yield Key(name=prefix + name, type=kind, description=" ".join((text or "").split()))
