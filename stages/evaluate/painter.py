"""A worker of the evaluation: paints a batch of cases in every arm and scores what it has painted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from model.backbone import load_backbone
from model.metrics import ClipScorer, DinoScorer, JudgeScorer, SubjectEmbedder, ground_change, subject_similarity
from model.pictures import load_picture, mask_picture, square_crop, to_png, to_tensor
from model.realcustom_pipeline import RealCustomOutput, RealCustomPlusPipeline
from model.textual_inversion import load_concept
from stages.config import Config, EvaluateConfig
from stages.evaluate.cases import Case
from stages.inference import loading_options, painting_options
from stages.schemas import SCORES

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

_MASK_SIDE = 64


@dataclass(frozen=True, kw_only=True)
class Place:
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


class Scorer:
    """The metrics that the configuration asks for."""

    def __init__(self, config: EvaluateConfig, backbone: str, device: str) -> None:
        inside = Path(backbone) / config.clip
        clip: str | Path = inside if inside.is_dir() else config.clip
        tokenizer = Path(backbone) / "tokenizer" if inside.is_dir() else None
        self.clip = ClipScorer.from_pretrained(clip, tokenizer).to(device)
        self.judge = JudgeScorer.from_pretrained(Path(backbone) / "judge") if config.similarity == "judge" else None
        self.subjects: SubjectEmbedder = self.judge or self.clip
        if config.similarity == "dino":
            self.subjects = DinoScorer.from_pretrained(config.dino).to(device)
        self._views: dict[str, Tensor] = {}

    def score(self, pictures: Tensor, cases: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
        """Likeness, obedience and CLIP-T of pictures (B, 3, H, W) in [0, 1]."""
        views = [self._embed_views(case) for case in cases]
        clip_t = self.clip.text_alignment(pictures, [case["prompt"] for case in cases])
        controllability = clip_t
        if self.judge is not None:
            controllability = self.judge.ground_probability(pictures, [case["ground"] for case in cases])
        return {
            "similarity": subject_similarity(self.subjects.embed_subjects(pictures), views).tolist(),
            "controllability": controllability.tolist(),
            "clip_t": clip_t.tolist(),
        }

    def ground_changes(self, pictures: Tensor, plain: Tensor) -> list[float | None]:
        """How far the ground is from that of the text-only pictures; None without a judge to find the subject."""
        if self.judge is None:
            return [None] * len(pictures)
        subject = self.judge.subject_region(pictures) | self.judge.subject_region(plain)
        return list(ground_change(pictures, plain, subject.cpu()).tolist())

    def _embed_views(self, case: Mapping[str, Any]) -> Tensor:
        name = case["subject"]
        if name not in self._views:
            views = [_as_square(picture) for picture in case["views"]]
            self._views[name] = torch.cat([self.subjects.embed_subjects(to_tensor([view])) for view in views])
        return self._views[name]


def _as_square(picture: bytes) -> Image.Image:
    image = load_picture(picture)
    return square_crop(image, 0.5, 0.5, min(image.size))


class Painter:
    """Ray Data calls it with tables of `CASES` and gets tables of `PAINTED`."""

    def __init__(self, config: Config, place: Place) -> None:
        self.device = "cuda" if config.evaluate.use_gpu else "cpu"
        self.dtype: torch.dtype = getattr(torch, config.backbone.dtype)
        self.place = place
        loading = loading_options(config.backbone)
        self.pipeline = RealCustomPlusPipeline.from_pretrained(
            place.backbone, place.adapter, dtype=self.dtype, device=self.device, **loading
        )
        self.options = painting_options(config.inference)
        self.scorer = Scorer(config.evaluate, place.backbone, self.device)

    @cached_property
    def concept_pipeline(self) -> RealCustomPlusPipeline:
        """The base model whose text encoder knows the learned concept."""
        backbone = load_backbone(self.place.backbone, self.dtype, self.device)
        load_concept(backbone, self.place.concept)
        return RealCustomPlusPipeline(backbone)

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
        "mask": to_png(mask_picture(masks[-1], _MASK_SIDE)) if masks else None,
        "seconds": output.timings["total"] / len(output.images),
    }
