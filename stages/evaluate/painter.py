"""A worker of the evaluation: paints a batch of cases in every arm and scores what it has painted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from model.backbone import load_backbone
from model.concepts.textual_inversion import load_concept
from model.pictures.decoding import load_picture, to_png
from model.pictures.tensors import mask_picture, to_tensor
from model.pipeline import RealCustomOutput, RealCustomPipeline
from stages.config import Config
from stages.data.schemas import SCORES
from stages.evaluate.cases import Case
from stages.evaluate.scorer import Scorer
from stages.inference import loading_options, painting_options

#: What a worker is given: one row a case. `painted_prompt` is `prompt`, with the placeholder in it for a concept.
CASES = pa.schema(
    [
        pa.field("subject", pa.string()),
        pa.field("word", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("painted_prompt", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("ground", pa.string()),
        pa.field("reference", pa.binary()),
        pa.field("views", pa.list_(pa.binary())),
        pa.field("arms", pa.list_(pa.string())),  # the same in all rows of a batch
    ]
)
#: What it gives back: a row a picture, and how long it took.
PAINTED = SCORES.append(pa.field("seconds", pa.float64(), nullable=False))

MASK_SIDE = 64  # pixels that a mask is shown in, at least


@dataclass(frozen=True, kw_only=True)
class PaintingPaths:
    """Where a worker finds its weights."""

    backbone: str
    adapter: Path
    concept: Path


def case_table(cases: Sequence[Case], arms: Sequence[str], painted_prompts: Sequence[str] | None = None) -> pa.Table:
    """Cases as a table for the workers, to be painted in `arms`."""
    rows = [
        {
            "subject": case.subject.name,
            "word": case.subject.word,
            "prompt": case.prompt,
            "painted_prompt": painted,
            "seed": case.seed,
            "ground": case.ground,
            "reference": case.subject.reference,
            "views": list(case.subject.views),
            "arms": list(arms),
        }
        for case, painted in zip(cases, painted_prompts or [case.prompt for case in cases], strict=True)
    ]
    return pa.Table.from_pylist(rows, CASES)


def load_pipeline(config: Config, place: PaintingPaths) -> RealCustomPipeline:
    """The pipeline with the trained adapter, on the device that the configuration names."""
    return RealCustomPipeline.from_pretrained(
        place.backbone,
        place.adapter,
        dtype=getattr(torch, config.backbone.dtype),
        device=device_of(config),
        **loading_options(config.backbone),
    )


def device_of(config: Config) -> str:
    """Where the workers paint."""
    return "cuda" if config.evaluate.use_gpu else "cpu"


class Painter:
    """Ray Data calls it with tables of `CASES` and gets tables of `PAINTED`."""

    def __init__(self, config: Config, place: PaintingPaths) -> None:
        self.place = place
        self.pipeline = load_pipeline(config, place)
        self.options = painting_options(config.inference)
        self.scorer = Scorer(config.evaluate, place.backbone, device_of(config))

    @cached_property
    def concept_pipeline(self) -> RealCustomPipeline:
        """The base model whose text encoder knows the learned concept."""
        base = self.pipeline.backbone
        backbone = load_backbone(self.place.backbone, base.dtype, base.device)
        load_concept(backbone, self.place.concept)
        return RealCustomPipeline(backbone)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Every arm of every case."""
        cases = batch.to_pylist()
        rows: list[dict[str, Any]] = []
        plain: Tensor | None = None
        for arm in cases[0]["arms"]:
            output = self._paint(arm, cases)
            pictures = to_tensor(output.images)
            scores: dict[str, Sequence[float | None]] = {**self.scorer.score(pictures, cases)}
            if plain is None:
                plain, scores["ground_change"] = pictures, [None] * len(cases)
            else:
                scores["ground_change"] = self.scorer.ground_changes(pictures, plain)
            rows += [_row(arm, case, output, number, scores) for number, case in enumerate(cases)]
        return pa.Table.from_pylist(rows, PAINTED)

    def _paint(self, arm: str, cases: Sequence[Mapping[str, Any]]) -> RealCustomOutput:
        prompts = [case["painted_prompt"] for case in cases]
        request: dict[str, Any] = {"seeds": [case["seed"] for case in cases], **self.options}
        if arm == "concept":
            return self.concept_pipeline(prompts, **request)
        if arm != "text_only":
            request["subjects"] = [load_picture(case["reference"]) for case in cases]
            request["words"] = [case["word"] for case in cases]
            request["use_mask"] = arm == "adapter_mask"
        return self.pipeline(prompts, **request)


def _row(
    arm: str,
    case: Mapping[str, Any],
    output: RealCustomOutput,
    number: int,
    scores: Mapping[str, Sequence[float | None]],
) -> dict[str, Any]:
    masks = output.masks[number] if arm == "adapter_mask" else []
    return {
        "arm": arm,
        **{key: case[key] for key in ("subject", "word", "prompt", "seed")},
        **{name: values[number] for name, values in scores.items()},
        "picture": to_png(output.images[number]),
        "mask": to_png(mask_picture(masks[-1], MASK_SIDE)) if masks else None,
        "seconds": output.timings["total"] / len(output.images),
    }
