"""The settings of the stage `multiview`."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from annotated_types import Ge, Le
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from model.settings import STRICT, Pixels, PositiveInt, Share
from stages.settings import DataLocation

Degrees = Annotated[float, Ge(0), Le(180)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MultiviewConfig:
    """View pairs from folders in MVImgNet's or a plain layout. Without `folders` the microworld's is read."""

    folders: list[DataLocation] = field(default_factory=list)
    """[]: the microworld's."""
    image_size: Pixels | None = 64
    """Shorter side of the stored frames, pixels; null: as large as training can use, as for `ingest.image_size`."""
    min_angle_degrees: Degrees = 10.0
    """Between the cameras of a pair."""
    max_angle_degrees: Degrees = 120.0
    pairs_per_instance: PositiveInt = 24
    """At most."""
    pairs_per_category: PositiveInt | None = None
    """Shared out evenly among its instances; null: no limit."""
    min_foreground: Share = 0.02
    """Share of the picture that an object must take, where there is a mask that says so."""

    @model_validator(mode="after")
    def _angles_fit(self) -> MultiviewConfig:
        if self.min_angle_degrees > self.max_angle_degrees:
            raise ValueError(
                f"min_angle_degrees is {self.min_angle_degrees:g}; set it to at most max_angle_degrees, which is "
                f"{self.max_angle_degrees:g}"
            )
        return self
