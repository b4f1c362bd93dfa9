"""Types of settings that only the pipeline has: what is of the operation, and what is a path."""

from __future__ import annotations

import functools
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, StringConstraints

from model.settings import ONE_LINE, Text, Words
from stages.tracking_uri import checked_setting

_T = TypeVar("_T")


class OfOperation:
    """Marks a setting that changes how a result is made, not the result (beyond rounding).

    It does not enter a fingerprint, and a training goes on from its checkpoints when it has changed.
    """


Operation = Annotated[_T, OfOperation()]


def marks_of(kind: Any) -> Iterator[Any]:
    """What is annotated in a type, at any depth."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is Annotated:
        yield from arguments[1:]
        arguments = arguments[:1]
    if typing.get_origin(kind) is not typing.Literal:
        for argument in arguments:
            yield from marks_of(argument)


def is_of_operation(kind: Any) -> bool:
    """Whether a setting of this type is one of the operation."""
    return any(isinstance(mark, OfOperation) for mark in marks_of(kind))


@functools.cache
def result_fields(section: Any) -> list[str]:
    """The names of a section's settings that change a result."""
    kinds = typing.get_type_hints(section, include_extras=True)
    return [field.name for field in fields(section) if not is_of_operation(kinds[field.name])]


@dataclass(frozen=True)
class PathKind:
    """Marks a value that names a file or a folder, and says what else it may name.

    Attributes:
        uri: It may be a URI.
        hub_id: It may be an id on the Hugging Face hub.
        hub_owner: Such an id has an owner, "owner/name": a name alone is a path.
        backbone_part: It may be a subfolder of the backbone: a name without a slash is no path.
        names: Other names that are no paths.
    """

    uri: bool = False
    hub_id: bool = False
    hub_owner: bool = False
    backbone_part: bool = False
    names: tuple[str, ...] = ()


_Path = Annotated[str, StringConstraints(pattern=ONE_LINE)]
LocalPath = Annotated[_Path, PathKind(), Words("a path")]
DataLocation = Annotated[_Path, PathKind(uri=True), Words("a path or a URI")]
DatasetLocation = Annotated[
    _Path,
    PathKind(uri=True, hub_id=True, hub_owner=True),
    Words("a path, a URI, or the hub id of a dataset"),
]
ModelLocation = Annotated[_Path, PathKind(hub_id=True), Words("a hub id or a folder")]
ClipLocation = Annotated[_Path, PathKind(hub_id=True, names=("micro",)), Words("micro, a hub id or a folder")]
BackbonePart = Annotated[
    _Path,
    PathKind(hub_id=True, backbone_part=True),
    Words("a subfolder of the backbone, a hub id or a folder"),
]

TrackingUri = Annotated[_Path, AfterValidator(checked_setting), Words("the URI of an MLflow server or a database")]

#: "an image of {word}": the class word takes the place of {word}.
Template = Annotated[Text, StringConstraints(pattern=r"\{word\}"), Words("text on one line that contains {word}")]
Port = Annotated[int, Ge(1), Le(65_535)]
#: A share of a GPU, or whole ones: Ray takes no other numbers.
Gpus = Annotated[float, Gt(0), Le(1)]
