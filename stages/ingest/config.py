"""The settings of the stage `ingest`."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, MinLen
from pydantic.dataclasses import dataclass

from model.settings import STRICT, NonNegativeInt, Pixels, PositiveInt, Share, Text
from stages.settings import DataLocation, Operation


@dataclass(frozen=True, kw_only=True, config=STRICT)
class IngestConfig:
    """img2dataset. Without `metadata` the microworld's is downloaded from its own loopback server."""

    metadata: DataLocation | None = None
    """Parquet, TSV, CSV or JSON lines, a file or a folder of any number; a path, or a URI such as s3://bucket/folder;
    null: the microworld's."""
    url_column: Text | None = None
    """null: as LAION and its relatives spell it."""
    caption_column: Text | None = None
    """null: as LAION and its relatives spell it."""
    min_similarity: Annotated[float, Ge(-1)] | None = None
    """Rows with a lower CLIP similarity are not downloaded; rows without one are."""
    max_unsafe: Share | None = None
    """Rows with a higher score are not downloaded; rows without one are."""
    max_watermark: Share | None = None
    """Rows with a higher score are not downloaded; rows without one are."""
    min_aesthetic: float | None = None
    """Rows with a lower score are not downloaded; rows without one are."""
    languages: Annotated[list[Text], MinLen(1)] | None = None
    """Rows in other languages are not downloaded; rows without one are. "en" is also "en-US"."""
    min_image_size: NonNegativeInt = 24
    """Of the metadata's width and height, where there are, and of the picture itself; pixels."""
    max_aspect_ratio: Annotated[float, Ge(1)] = 3.0
    """Longer side over shorter side."""
    image_size: Pixels | None = 64
    """Shorter side of the stored pictures, pixels; smaller ones stay as they are. null: as large as training can use:
    high_resolution_tiles x reference_size x sqrt(10) of `backbone`, or its resolution if that is more."""
    samples_per_shard: PositiveInt = 600
    processes: Operation[PositiveInt] = 2
    """Shards at work at once, each in a Ray task of its own."""
    threads: Operation[PositiveInt] = 16
    """Downloads at once in each process."""
    timeout_seconds: Operation[PositiveInt] = 10
    """For each answer."""
    total_seconds: Operation[PositiveInt] = 60
    """For a picture, with all redirects and retries."""
    max_bytes: PositiveInt = 20_000_000
    """Of a picture's file, unpacked."""
    max_pixels: PositiveInt = 64_000_000
    """Of a picture; 64000000 is also the limit of all later stages."""
    retries: Operation[NonNegativeInt] = 1
    allow_private_addresses: bool = False
    """True: URLs may lead to this machine and its neighbours."""
    retry: Literal["failed"] | None = None
    """"failed": the stage's last output, with its failed rows asked for again."""
    max_failed_share: Operation[Share] = 0.9
    """Of all rows; more failures than this stop the run."""
