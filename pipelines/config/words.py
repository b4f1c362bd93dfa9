"""Types in words: what a setting takes."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any

from annotated_types import Ge, Gt, Le, Lt, MinLen, MultipleOf

from model.settings import Words
from pipelines.config.keys import members, without_marks
from stages.tracking_uri import masked

_SHOWN_CHARACTERS = 100
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def describe(kind: Any) -> str:
    """A type in words: "a number from 0 to 1 or null"."""
    plain = without_marks(kind)
    marks: Sequence[Any] = getattr(kind, "__metadata__", ())
    own = [mark.text for mark in marks if isinstance(mark, Words)]
    if own:
        return own[-1]
    if len(members(kind)) > 1:
        return " or ".join(describe(part) for part in typing.get_args(plain))
    if typing.get_origin(plain) in (list, tuple):
        items = "one or more items" if any(isinstance(mark, MinLen) for mark in marks) else "items"
        return f"a list [..] of {items} that are each {describe(typing.get_args(plain)[0])}"
    if typing.get_origin(plain) is typing.Literal:
        choices = [repr(choice) for choice in typing.get_args(plain)]
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    return _NAMES[plain] + _range(marks)


def show(value: Any) -> str:
    """A value on one line, cut off where it is long."""
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python prints
        return "a very large number"
    text = masked(text)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _range(marks: Sequence[Any]) -> str:
    """What the limits among the marks allow: " from 0 to 1", " above 0 and below 1"."""
    lower = upper = multiple = ""
    for mark in marks:
        match mark:
            case Ge():
                lower = f"from {mark.ge}"
            case Gt():
                lower = f"above {mark.gt}"
            case Le():
                upper = f"to {mark.le}" if lower.startswith("from") else f"at most {mark.le}"
            case Lt():
                upper = f"below {mark.lt}"
            case MultipleOf():
                multiple = f", a multiple of {mark.multiple_of}"
    joined = f"{lower} {upper}" if upper.startswith("to") else " and ".join(filter(None, (lower, upper)))
    return f" {joined}{multiple}" if joined else multiple
