"""How settings are declared: dataclasses that pydantic validates when they are made, and the types of their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le
from pydantic import ConfigDict, StringConstraints

#: No value is converted to another type, no key is unknown, no number is infinite; a string below a field describes it.
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


@dataclass(frozen=True)
class Words:
    """Says in words what a type allows, where its range alone does not."""

    text: str


PositiveInt = Annotated[int, Ge(1), Le(1_000_000_000)]
NonNegativeInt = Annotated[int, Ge(0), Le(1_000_000_000)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
Pixels = Annotated[int, Ge(8), Le(16_384)]

#: At least one character that is not a space, and no control characters.
ONE_LINE = r"^[^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*$"
Text = Annotated[str, StringConstraints(pattern=ONE_LINE), Words("text on one line, not empty")]
