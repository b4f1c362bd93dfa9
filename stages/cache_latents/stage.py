"""Stage `cache_latents` (optional): the encodings of the plan's examples, computed once, on Ray.

`latents/` has the VAE's latents of the plan's targets, `texts/` the text encoders' states of its captions:
what `train_adapter` would compute itself, in float32 or rounded to float16. Actors hold the encoders and write one file
at a time into `context.scratch`; an interrupted stage continues with the missing files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image

from model.backbone import Backbone, load_backbone
from model.errors import ModelError
from model.pictures.crops import cover
from model.pictures.tensors import to_tensor
from model.training.adapter_examples import open_picture
from model.training.encodings import EncodingCacheError, encode_captions, encode_targets, encoder_identity
from stages.cache_latents.config import CacheLatentsConfig
from stages.contract import Reporter, StageContext, StageResult
from stages.data.encodings import (
    distinct_captions,
    distinct_targets,
    encoding_rows,
    identity_of,
    keys_of_targets,
    write_encodings,
)
from stages.data.plan import PlanPictures, PlanReader, check_plan
from stages.inference import backbone_location, backbone_setting, on_this_machine
from stages.local_copies import local_copy
from stages.ray_tools.mapping import Progress, Workers, map_on_workers, one_row_batches, rows_of
from stages.storage import StorePath, absolute, folder_bytes, move_folder, open_output

DATASETS = ("latents", "texts")
#: The largest number of files of a dataset; a reader keeps all of them open.
_MAX_PARTS = 256
_MIN_ROWS_PER_PART = 1024


@dataclass(frozen=True, kw_only=True)
class EncodingJob:
    """The input of the actors.

    Attributes:
        backbone: Folder, its URI, or hub id.
        setting: Of the backbone.
        pictures: Id of the plan -> encoded picture.
        settings: The stage's section of the configuration.
        folder: Of the examples (`latents.arrow`, `texts.arrow`) and of the encoded files.
    """

    backbone: str
    setting: str
    pictures: PlanPictures
    settings: CacheLatentsConfig
    folder: StorePath

    def examples(self, dataset: str) -> StorePath:
        """The targets or captions to encode, in order."""
        return self.folder / f"{dataset}.arrow"


def run(context: StageContext) -> StageResult:
    """Write `latents/` and `texts/`."""
    job, plan = make_job(context), PlanReader(absolute(context.inputs["curriculum"]) / "plan")
    check_plan(plan, job.pictures)
    rows = write_examples(job, plan)
    encode(job, parts_of(rows), context.report)
    for dataset in DATASETS:
        move_folder(job.folder / dataset, context.output / dataset)
    return StageResult(rows=rows, metrics=_metrics(context.output, rows, plan))


def make_job(context: StageContext) -> EncodingJob:
    """The job that the configuration describes."""
    settings = context.config.cache_latents
    return EncodingJob(
        backbone=backbone_location(context.config.backbone, context.inputs),
        setting=backbone_setting(context.config.backbone),
        pictures=PlanPictures.of(context.inputs),
        settings=settings,
        folder=absolute(context.scratch),
    )


def write_examples(job: EncodingJob, plan: PlanReader) -> dict[str, int]:
    """Write the plan's distinct targets and captions to files that actors can map; returns the rows of each dataset."""
    examples = {"latents": distinct_targets(plan, job.pictures), "texts": distinct_captions(plan)}
    for dataset, table in examples.items():
        with open_output(job.examples(dataset)) as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return {dataset: table.num_rows for dataset, table in examples.items()}


def parts_of(rows: dict[str, int]) -> list[dict[str, Any]]:
    """The files to write: for each its dataset, number, first row and number of rows."""
    return [
        {"dataset": dataset, "number": number, "start": start, "rows": min(size, rows[dataset] - start)}
        for dataset in DATASETS
        for size in [max(_MIN_ROWS_PER_PART, -(-rows[dataset] // _MAX_PARTS))]
        for number, start in enumerate(range(0, rows[dataset], size))
    ]


def encode(job: EncodingJob, parts: list[dict[str, Any]], report: Reporter) -> None:
    """Write all missing files, in actors."""
    written = map_on_workers(
        Encoder,
        one_row_batches(parts),
        arguments={"job": job},
        workers=Workers(
            count=job.settings.actors,
            cpus=0.5,
            gpus=job.settings.gpus_per_actor if job.settings.use_gpu else 0,
        ),
        progress=Progress(
            report=report,
            total=sum(part["rows"] for part in parts),
            note="encoding targets and captions",
            amount=rows_of,
        ),
        errors=(ModelError,),
    )
    for _ in written:
        pass


def _metrics(output: StorePath, rows: dict[str, int], plan: PlanReader) -> dict[str, float]:
    """The examples of the plan for each encoding, and the size of an encoding on the disk."""
    examples = sum(part.num_rows for part in plan.parts("slot"))
    size = {dataset: folder_bytes(output / dataset) for dataset in DATASETS}
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
        """Loaded in the first call: of an error in an actor's constructor, Ray keeps only the text."""
        device = "cuda" if self.job.settings.use_gpu else "cpu"
        location = on_this_machine(self.job.backbone, self.job.setting)
        return load_backbone(location, device=device, encoders_only=True)

    @cached_property
    def identity(self) -> dict[str, str]:
        """See `encoder_identity`."""
        return encoder_identity(self.backbone)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Write the files that the rows describe, except those that an earlier call has written."""
        for part in batch.to_pylist():
            file = self.job.folder / part["dataset"] / f"part-{part['number']:05d}.parquet"
            if not self._is_written(file):
                self._write(file, part)
            yield pa.table({"rows": [part["rows"]]})

    def _write(self, file: StorePath, part: dict[str, Any]) -> None:
        with pa.memory_map(str(local_copy(self.job.examples(part["dataset"])))) as examples:
            table = pa.ipc.open_file(examples).read_all().slice(part["start"], part["rows"])
            try:
                write_encodings(file, self.identity, self._encode(part["dataset"], table))
            except torch.OutOfMemoryError as error:
                raise EncodingCacheError("the GPU is out of memory: lower cache_latents.batch_size.") from error

    def _is_written(self, file: StorePath) -> bool:
        """Whether the file exists and was made with these encoders."""
        try:
            return identity_of(file) == self.identity
        except EncodingCacheError:
            return False

    def _encode(self, dataset: str, table: pa.Table) -> Iterator[pa.Table]:
        """The rows of a file, in batches."""
        size, dtype = self.job.settings.batch_size, getattr(torch, self.job.settings.dtype)
        for start in range(0, table.num_rows, size):
            batch = table.slice(start, size)
            if dataset == "latents":
                yield from self._encode_targets(batch, dtype)
            else:
                captions = batch["caption"].to_pylist()
                yield encoding_rows(captions, encode_captions(self.backbone, captions), dtype)

    def _encode_targets(self, batch: pa.Table, dtype: torch.dtype) -> Iterator[pa.Table]:
        """The rows of a batch, those of one size at a time."""
        for size in batch.group_by(["height", "width"], use_threads=False).aggregate([]).to_pylist():
            of_size = batch.filter((pc.field("height") == size["height"]) & (pc.field("width") == size["width"]))
            pictures = to_tensor([self._target(row) for row in of_size.to_pylist()])
            tensors = {"latent": encode_targets(self.backbone, pictures)}
            yield encoding_rows(keys_of_targets(of_size), tensors, dtype)

    def _target(self, row: dict[str, Any]) -> Image.Image:
        """The target; one that shows the whole picture has no crop position."""
        picture = open_picture(self.job.pictures, row["target_id"])
        place = row["target_crop_x"] or 0.0, row["target_crop_y"] or 0.0
        return cover(picture, *place, (row["width"], row["height"]))
