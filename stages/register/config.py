"""The settings of the stage `register`."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints
from pydantic.dataclasses import dataclass

from model.settings import STRICT, Words

#: MLflow's rule for the names of registered models, without what a URI or a path could not hold.
ModelName = Annotated[
    str,
    StringConstraints(pattern=r"^[\w-][\w.-]*$", max_length=200),
    Words("a name of letters, digits, '_', '-' and '.' that does not start with '.'"),
]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RegisterConfig:
    """The model registry. `champion` moves to the new version when its score beats the last champion's."""

    model_name: ModelName = "realword-micro"
    promote: bool = False
    """Move `champion` to the new version whatever the scores say."""
