"""The settings of the stage `microworld`."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from model.settings import STRICT, Pixels, PositiveInt, Share
from stages.settings import Port


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MicroworldConfig:
    """The procedural web: pictures behind URLs, and an MVImgNet-shaped folder."""

    pictures: PositiveInt = 3000
    """Rows of the web's metadata."""
    dead_share: Share = 0.02
    """Share of the rows whose URL does not answer."""
    broken_share: Share = 0.02
    """Share of the rows whose answer is no whole picture."""
    duplicate_share: Share = 0.03
    tiny_share: Share = 0.02
    poor_share: Share = 0.10
    """Share of the rows whose scores lie below the thresholds of `filter`."""
    web_like_captions: Share = 0.1
    """Share of the captions that are like those of the web: without background, without second object, with the noun
    alone, wrong in one word, or longer than the text encoder reads."""
    multiview_instances: PositiveInt = 240
    views: Annotated[int, Ge(2), Le(1000)] = 8
    """Pictures of each multiview instance."""
    picture_size: Pixels = 64
    """Side, pixels."""
    port: Port = 8973
    """Part of the pictures' URLs, and so of the sample ids; `ingest` itself serves them, at a free port."""

    @model_validator(mode="after")
    def _shares_fit(self) -> MicroworldConfig:
        total = self.dead_share + self.broken_share + self.duplicate_share + self.tiny_share + self.poor_share
        if total > 1 + 1e-9:
            raise ValueError(
                "dead_share, broken_share, duplicate_share, tiny_share and poor_share may be 1 at most together; "
                f"they are {total:g}"
            )
        return self
