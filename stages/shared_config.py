"""Settings that stages share: the run's and the backbone's."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Annotated, Literal

from annotated_types import Ge, Le, MinLen, MultipleOf
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from model.settings import STRICT, Pixels, PositiveInt, Seed
from stages.settings import BackbonePart, DataLocation, ModelLocation, Operation, TrackingUri

#: Pictures are stored with full detail for crops up to this ratio, RealCustom++'s r_max. It is not
#: `curriculum.max_crop_ratio`, because another recipe must not mean another download.
LARGEST_CROP_RATIO = math.sqrt(10)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    """Where a run keeps everything it writes, and what it may use."""

    folder: Operation[DataLocation] = "runs/micro"
    """Where the run keeps everything it writes: a folder, or a URI such as s3://bucket/run that all machines reach."""
    seed: Seed = 0
    """Of every random number."""
    cpus: Operation[PositiveInt | None] = None
    """null: all of the machine's."""
    tracking_uri: Operation[TrackingUri | None] = None
    """MLflow's records and registry: https://..., postgresql://user@host/database, sqlite:///path; null:
    MLFLOW_TRACKING_URI of the environment, else an SQLite file in the run folder."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BackboneConfig:
    """The latent diffusion model that is customized, and the image encoders that see the subject."""

    weights: ModelLocation | None = None
    """In diffusers' layout; null: the output of the stage `base`."""
    adapter: Operation[ModelLocation | None] = None
    """An adapter from elsewhere for `generate` and `serve`, such as imported released weights; null: the run's."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the weights where pictures are painted (evaluate, register, generate, serve); training does not read it."""
    resolution: Annotated[Pixels, MultipleOf(8)] = 64
    """Side of the pictures that the backbone paints, pixels."""
    image_encoders: Annotated[list[BackbonePart], MinLen(1)] = field(default_factory=lambda: ["clip", "dino"])
    """Their features are concatenated. A folder has a slash, such as ./clip: a plain name is a part of the backbone."""
    shallow_layers: Annotated[list[Annotated[list[Annotated[int, Ge(0), Le(1000)]], MinLen(1)]], MinLen(1)] = field(
        default_factory=lambda: [[0, 1, 2], [0, 1, 2]]
    )
    """For each image encoder the blocks, from 0, whose features are the shallow ones; equally many for each."""
    reference_size: Pixels = 64
    """Side of the reference as the encoders see it; 384 in the paper."""
    high_resolution_tiles: Annotated[int, Ge(1), Le(64)] = 2
    """The high-resolution reference is tiles x tiles encoder views; 768 = 2 * 384 in the paper."""

    @model_validator(mode="after")
    def _encoders_fit_layers(self) -> BackboneConfig:
        encoders, layers = self.image_encoders, self.shallow_layers
        if len(encoders) != len(layers):
            raise ValueError(
                f"shallow_layers must hold one list for each of the {len(encoders)} image_encoders; it holds "
                f"{len(layers)}"
            )
        if len({len(blocks) for blocks in layers}) != 1:
            raise ValueError(f"shallow_layers must hold lists of equal length, not {layers}")
        return self

    def picture_size(self, crop_ratio: float) -> int:
        """The shorter side, pixels, of a picture that has full detail for all that training takes of it.

        As a target its square has `resolution` pixels. As a reference the encoders see `high_resolution_tiles` x
        `reference_size` pixels of a crop whose side is 1 / `crop_ratio` of the picture's (RealCustom++ Eq. 11).
        """
        return max(self.resolution, math.ceil(self.high_resolution_tiles * self.reference_size * crop_ratio))

    def stored_size(self, image_size: int | None) -> int:
        """The shorter side at which `ingest` and `multiview` store larger pictures, by their `image_size`."""
        return self.picture_size(LARGEST_CROP_RATIO) if image_size is None else image_size
