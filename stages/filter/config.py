"""The settings of the stage `filter`."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from annotated_types import Ge, MinLen
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from model.settings import STRICT, NonNegativeFloat, NonNegativeInt, PositiveInt, Share, Text
from stages.settings import ClipLocation, DatasetLocation, Gpus, LocalPath, ModelLocation, Operation


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ScoringConfig:
    """Models for the scores that a threshold needs and the metadata lacks; null: such a sample is rejected.

    The CLIP "micro" is the one that ships with the code and knows the microworld only.
    """

    similarity_clip: ClipLocation | None = "micro"
    aesthetic_clip: ClipLocation | None = None
    """LAION's heads read openai/clip-vit-large-patch14."""
    aesthetic_head: LocalPath | None = None
    """File of LAION's aesthetic predictor (V1 or V2), .safetensors or .pth."""
    safety_checker: ModelLocation | None = None
    """A Stable Diffusion with one; 0.5 is its threshold."""
    actors: Operation[PositiveInt] = 1
    use_gpu: Operation[bool] = False
    gpus_per_actor: Operation[Gpus] = 0.25
    """A share of a GPU, with `use_gpu`."""
    batch_size: Operation[PositiveInt] = 64

    @model_validator(mode="after")
    def _head_has_its_clip(self) -> ScoringConfig:
        if self.aesthetic_head is not None and self.aesthetic_clip is None:
            raise ValueError(
                "aesthetic_head reads the embeddings of aesthetic_clip, which is null; set it, for LAION's heads to "
                "openai/clip-vit-large-patch14"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FilterConfig:
    """Rules for captions and pictures, and thresholds on LAION's scores; null switches a rule off."""

    pictures_folder: DatasetLocation | None = None
    """Captioned pictures that are there already: webdataset, Parquet, Arrow, files with a list or texts beside them
    (see datasets.md); null: ingest's output."""
    picture_column: Text | None = None
    """Of `pictures_folder`: the pictures' bytes or file names; null: by the usual names."""
    caption_column: Text | None = None
    """Of `pictures_folder`; null: by the usual names."""
    min_aesthetic: float | None = 5.0
    min_similarity: Annotated[float, Ge(-1)] | None = 0.26
    max_unsafe: Share | None = 0.5
    max_watermark: Share | None = 0.8
    min_side: NonNegativeInt | None = 48
    """Of the shorter side, pixels."""
    min_pixels: NonNegativeInt | None = None
    """Width times height."""
    max_aspect_ratio: Annotated[float, Ge(1)] | None = 2.0
    """Longer side over shorter side."""
    min_caption_words: NonNegativeInt | None = 3
    """In scripts without spaces, such as Chinese, Japanese and Thai, each letter counts as a word."""
    max_caption_characters: PositiveInt | None = 1000
    caption_script: Text | None = None
    """Unicode's name, such as Latin or Han, of at least half of a caption's letters; Jpan and Kore mix scripts."""
    languages: Annotated[list[Text], MinLen(1)] | None = None
    """Such as [en], by the metadata's column LANGUAGE; "en" is also "en-US"."""
    min_contrast: NonNegativeFloat | None = 4.0
    """Standard deviation of a coarse grid's colours, of 255; less is a single colour."""
    drop_duplicates: bool = True
    scoring: ScoringConfig = field(default_factory=ScoringConfig)

    @model_validator(mode="after")
    def _script_is_known(self) -> FilterConfig:
        if self.caption_script is not None:
            from stages.filter.scripts import find_script  # here, because its tables take time

            try:
                find_script(self.caption_script)
            except ValueError as error:
                raise ValueError(f"caption_script: {error}") from error
        return self
