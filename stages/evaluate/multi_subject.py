"""A worker of the evaluation: several subjects in one picture, and several rounds of one subject.

Every picture of a pair comes from the same noise. `text_only` has the same masks and no strength, so that its regions
are found as those of the others are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch
from PIL import Image

from model.guidance.subjects import Subject
from model.pictures.decoding import load_picture, to_png
from model.pictures.tensors import mask_picture, to_tensor
from model.pipeline import RealCustomOutput
from stages.config import Config
from stages.data.schemas import MULTI_SUBJECT
from stages.evaluate.painter import MASK_SIDE, PaintingPaths, device_of, load_pipeline
from stages.evaluate.pairs import PairCase
from stages.evaluate.scorer import Scorer
from stages.inference import painting_options

#: What a worker is given: one row a pair; a list of two holds what belongs to each subject.
PAIR_CASES = pa.schema(
    [
        pa.field("subjects", pa.list_(pa.string())),
        pa.field("words", pa.list_(pa.string())),
        pa.field("references", pa.list_(pa.binary())),
        pa.field("views", pa.list_(pa.list_(pa.binary()))),
        pa.field("together", pa.binary()),
        pa.field("prompt", pa.string()),
        pa.field("round_prompts", pa.list_(pa.string())),
        pa.field("round_phrases", pa.list_(pa.string())),
        pa.field("seed", pa.int64()),
    ]
)

Case = Mapping[str, Any]


def pair_table(cases: Sequence[PairCase]) -> pa.Table:
    """Cases as a table for the workers."""
    rows = [
        {
            "subjects": [subject.name for subject in case.pair.subjects],
            "words": [subject.word for subject in case.pair.subjects],
            "references": [subject.reference for subject in case.pair.subjects],
            "views": [list(subject.views) for subject in case.pair.subjects],
            "together": case.pair.together,
            "prompt": case.prompt,
            "round_prompts": [one.prompt for one in case.rounds],
            "round_phrases": [one.phrase for one in case.rounds],
            "seed": case.seed,
        }
        for case in cases
    ]
    return pa.Table.from_pylist(rows, PAIR_CASES)


class MultiSubjectPainter:
    """Called by Ray Data: takes tables of `PAIR_CASES`, returns tables of `MULTI_SUBJECT`, a row a subject."""

    def __init__(self, config: Config, place: PaintingPaths) -> None:
        self.pipeline = load_pipeline(config, place)
        self.options = painting_options(config.inference)
        self.scorer = Scorer(config.evaluate, place.backbone, device_of(config))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Every task of every pair."""
        cases = batch.to_pylist()
        own = [[load_picture(reference) for reference in case["references"]] for case in cases]
        together = [[load_picture(case["together"])] * 2 for case in cases]
        rows = self._paint_pairs("text_only", cases, own, scale=0.0)
        rows += self._paint_pairs("many_to_many", cases, own)
        rows += self._paint_pairs("one_to_many", cases, together)
        rows += self._paint_rounds(cases, [references[0] for references in own])
        return pa.Table.from_pylist(rows, MULTI_SUBJECT)

    def _paint_pairs(
        self, task: str, cases: Sequence[Case], pictures: Sequence[Sequence[Image.Image]], scale: float | None = None
    ) -> list[dict[str, Any]]:
        """Both subjects in one picture; each takes its part of the scope that one alone has."""
        scope = self.options["mask_scope"] / 2
        subjects = [
            [
                Subject(picture=picture, word=word, scope=scope, scale=scale)
                for picture, word in zip(references, case["words"], strict=True)
            ]
            for case, references in zip(cases, pictures, strict=True)
        ]
        return self._paint(task, cases, [case["prompt"] for case in cases], subjects)[0]

    def _paint_rounds(self, cases: Sequence[Case], references: Sequence[Image.Image]) -> list[dict[str, Any]]:
        """Each round shows the model what the round before has painted."""
        rows: list[dict[str, Any]] = []
        for number in range(len(cases[0]["round_prompts"])):
            phrases = [case["round_phrases"][number] for case in cases]
            subjects = [
                [Subject(picture=shown, word=phrase)] for shown, phrase in zip(references, phrases, strict=True)
            ]
            prompts = [case["round_prompts"][number] for case in cases]
            painted, references = self._paint(f"round_{number + 1}", cases, prompts, subjects)
            rows += painted
        return rows

    def _paint(
        self, task: str, cases: Sequence[Case], prompts: Sequence[str], subjects: Sequence[Sequence[Subject]]
    ) -> tuple[list[dict[str, Any]], list[Image.Image]]:
        """A row for each subject of each picture, and the pictures."""
        seeds = [case["seed"] for case in cases]
        output = self.pipeline(prompts, subjects, seeds=seeds, **self.options)
        rows: list[dict[str, Any]] = []
        for place in range(len(subjects[0])):
            similarities = [self._similarities(cases, output, place, whose) for whose in (place, 1 - place)]
            for number, (case, prompt) in enumerate(zip(cases, prompts, strict=True)):
                mask = output.masks[number][-1][place : place + 1]
                rows.append(
                    {
                        "task": task,
                        "pair": " + ".join(case["subjects"]),
                        "subject": case["subjects"][place],
                        "phrase": subjects[number][place].word,
                        "prompt": prompt,
                        "seed": case["seed"],
                        "similarity": similarities[0][number],
                        "other_similarity": similarities[1][number],
                        "reference": to_png(subjects[number][place].picture),
                        "picture": to_png(output.images[number]),
                        "mask": to_png(mask_picture(mask, MASK_SIDE)),
                    }
                )
        return rows, output.images

    def _similarities(self, cases: Sequence[Case], output: RealCustomOutput, place: int, whose: int) -> list[float]:
        """How like subject `whose` the region of subject `place` is, of each picture."""
        regions = torch.stack([masks[-1][place] > 0 for masks in output.masks])
        names, views = [case["subjects"][whose] for case in cases], [case["views"][whose] for case in cases]
        return self.scorer.region_similarity(to_tensor(output.images), regions, names, views)
