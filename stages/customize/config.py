"""The settings of the stage `customize`."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Gt, Lt
from pydantic import StringConstraints
from pydantic.dataclasses import dataclass

from model.settings import STRICT, NonNegativeFloat, PositiveFloat, PositiveInt, Text, Words
from stages.settings import LocalPath

Token = Annotated[str, StringConstraints(pattern=r"^[^\s\x00-\x1f\x7f]+$"), Words("text without spaces, not empty")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CustomizeConfig:
    """One concept from a few pictures: Textual Inversion with the MLM loss (Contextualizer, Algorithm 2)."""

    subject: LocalPath | None = None
    """Folder of pictures of one subject; null: a held-out subject of the microworld."""
    pictures: Literal["views", "album"] = "views"
    """Of a subject of the microworld: views in different places, or an album with one background, one neighbour and
    almost one pose, to which a method can overfit."""
    word: Text = "toy"
    """The class word."""
    placeholder: Token = "[v]"
    """The new token."""
    steps: PositiveInt = 200
    batch_size: PositiveInt = 4
    learning_rate: PositiveFloat = 5e-3
    mlm_weight: NonNegativeFloat = 1e-4
    """lambda."""
    mask_rate: Annotated[float, Gt(0), Lt(1)] = 0.15
    """Share of the tokens that are masked."""
