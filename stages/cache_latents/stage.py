"""Stage `cache_latents`, optional: what the backbone's encoders make of the plan's examples, computed once, on Ray.

`latents/` has the VAE's latents of the plan's target squares, `texts/` the text encoders' states of its captions. They
are what `train_adapter` would compute itself, in float32 or rounded to float16. Actors hold the encoders and write a
file at a time; finished files stay in `context.scratch`: an interrupted stage goes on with those that are missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from PIL import Image

from model.backbone import Backbone, BackboneError, load_backbone
from model.errors import ModelError
from model.pictures.crops import square_crop
from model.pictures.tensors import to_tensor
from model.training.adapter_examples import open_picture
from model.training.encodings import EncodingCacheError, encode_captions, encode_squares, encoder_identity
from stages.config import CacheLatentsConfig
from stages.contract import Reporter, StageContext, StageError, StageResult
from stages.data.encodings import (
    distinct_captions,
    distinct_squares,
    encoding_rows,
    identity_of,
    keys_of_squares,
    write_encodings,
)
from stages.data.plan import PlanPictures, PlanReader, check_plan
from stages.inference import backbone_location
from stages.ray_tools.mapping import Progress, Workers, map_on_workers, one_row_batches, rows_of

DATASETS = ("latents", "texts")
#: A dataset has up to so many files; a reader keeps all of them open.
_MOST_PARTS = 256
_LEAST_ROWS_PER_PART = 1024


@dataclass(frozen=True, kw_only=True)
class EncodingJob:
    """What the actors need to know.

    Attributes:
        backbone: Folder or hub id.
        resolution: Side of the target squares, pixels.
        pictures: Id of the plan -> encoded picture.
        settings: The stage's.
        folder: Of the examples (`latents.arrow`, `texts.arrow`) and of the files that are written.
    """

    backbone: str
    resolution: int
    pictures: PlanPictures
    settings: CacheLatentsConfig
    folder: Path

    def examples(self, dataset: str) -> Path:
        """The squares or captions to encode, in order."""
        return self.folder / f"{dataset}.arrow"


def run(context: StageContext) -> StageResult:
    """Write `latents/` and `texts/`."""
    job, plan = make_job(context), PlanReader(context.inputs["curriculum"].resolve() / "plan")
    check_plan(plan, job.pictures)
    rows = write_examples(job, plan)
    encode(job, parts_of(rows), context.report)
    for dataset in DATASETS:
        (job.folder / dataset).rename(context.output / dataset)
    return StageResult(rows=rows, metrics=_accounts(context.output, rows, plan))


def make_job(context: StageContext) -> EncodingJob:
    """What the configuration describes.

    Raises:
        StageError: A value makes no sense.
    """
    settings = context.config.cache_latents
    for key in ("actors", "batch_size"):
        if getattr(settings, key) < 1:
            raise StageError(f"cache_latents.{key} is {getattr(settings, key)}: set it to at least 1.")
    return EncodingJob(
        backbone=backbone_location(context.config.backbone, context.inputs),
        resolution=context.config.backbone.resolution,
        pictures=PlanPictures.of(context.inputs),
        settings=settings,
        folder=context.scratch.resolve(),
    )


def write_examples(job: EncodingJob, plan: PlanReader) -> dict[str, int]:
    """Write the plan's squares and captions, each once, where actors can map them; returns the rows by dataset."""
    examples = {"latents": distinct_squares(plan, job.pictures), "texts": distinct_captions(plan)}
    for dataset, table in examples.items():
        with pa.OSFile(str(job.examples(dataset)), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return {dataset: table.num_rows for dataset, table in examples.items()}


def parts_of(rows: dict[str, int]) -> list[dict[str, Any]]:
    """The files to write: dataset, number, start and rows of each."""
    return [
        {"dataset": dataset, "number": number, "start": start, "rows": min(size, rows[dataset] - start)}
        for dataset in DATASETS
        for size in [max(_LEAST_ROWS_PER_PART, -(-rows[dataset] // _MOST_PARTS))]
        for number, start in enumerate(range(0, rows[dataset], size))
    ]


def encode(job: EncodingJob, parts: list[dict[str, Any]], report: Reporter) -> None:
    """Have actors write all files that are missing."""
    written = map_on_workers(
        Encoder,
        one_row_batches(parts),
        arguments={"job": job},
        workers=Workers(count=job.settings.actors, cpus=0.5, gpus=job.settings.gpus_per_actor),
        progress=Progress(
            report=report,
            total=sum(part["rows"] for part in parts),
            note="encoding target squares and captions",
            amount=rows_of,
        ),
        errors=(ModelError,),
    )
    for _ in written:
        pass


def _accounts(output: Path, rows: dict[str, int], plan: PlanReader) -> dict[str, float]:
    """How many of the plan's examples use an encoding, and what it takes on the disk."""
    examples = sum(part.num_rows for part in plan.parts("slot"))
    size = {dataset: sum(file.stat().st_size for file in (output / dataset).iterdir()) for dataset in DATASETS}
    return {
        "examples_per_latent": examples / rows["latents"],
        "examples_per_text": examples / rows["texts"],
        "bytes_per_latent": size["latents"] / rows["latents"],
        "bytes_per_text": size["texts"] / rows["texts"],
    }


class Encoder:
    """An actor that holds the encoders."""

    def __init__(self, job: EncodingJob) -> None:
        self.job = job

    @cached_property
    def backbone(self) -> Backbone:
        """Loaded for the first batch: of an actor that fails before, Ray keeps the text of the error only."""
        device = "cuda" if self.job.settings.gpus_per_actor else "cpu"
        backbone = load_backbone(self.job.backbone, device=device, encoders_only=True)
        if self.job.resolution % backbone.latent_scale:
            raise BackboneError(
                f"pictures of {self.job.resolution} x {self.job.resolution} pixels: the backbone's VAE wants multiples "
                f"of {backbone.latent_scale}."
            )
        return backbone

    @cached_property
    def identity(self) -> dict[str, str]:
        """Of the encoders."""
        return encoder_identity(self.backbone, self.job.resolution)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Write the files that the rows describe; those that an interrupted call has written stay."""
        for part in batch.to_pylist():
            file = self.job.folder / part["dataset"] / f"part-{part['number']:05d}.parquet"
            if not self._is_written(file):
                self._write(file, part)
            yield pa.table({"rows": [part["rows"]]})

    def _write(self, file: Path, part: dict[str, Any]) -> None:
        with pa.memory_map(str(self.job.examples(part["dataset"]))) as examples:
            table = pa.ipc.open_file(examples).read_all().slice(part["start"], part["rows"])
            try:
                write_encodings(file, self.identity, self._encode(part["dataset"], table))
            except torch.OutOfMemoryError as error:
                raise EncodingCacheError("the GPU's memory is too little: lower cache_latents.batch_size.") from error

    def _is_written(self, file: Path) -> bool:
        """Whether the file is there, made with these encoders."""
        try:
            return file.exists() and identity_of(file) == self.identity
        except EncodingCacheError:
            return False

    def _encode(self, dataset: str, table: pa.Table) -> Iterator[pa.Table]:
        """The rows of a file, a batch at a time."""
        size, dtype = self.job.settings.batch_size, getattr(torch, self.job.settings.dtype)
        for start in range(0, table.num_rows, size):
            some = table.slice(start, size)
            if dataset == "latents":
                squares = to_tensor([self._square(row) for row in some.to_pylist()])
                tensors = {"latent": encode_squares(self.backbone, squares)}
                yield encoding_rows(keys_of_squares(some), tensors, dtype)
            else:
                captions = some["caption"].to_pylist()
                yield encoding_rows(captions, encode_captions(self.backbone, captions), dtype)

    def _square(self, row: dict[str, Any]) -> Image.Image:
        """The target's square; where it lies does not matter if the picture is square."""
        picture = open_picture(self.job.pictures, row["target_id"])
        return square_crop(picture, row["target_crop_x"] or 0.0, row["target_crop_y"] or 0.0, self.job.resolution)
