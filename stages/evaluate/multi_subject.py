"""An experiment of the evaluation: two subjects in one picture, and rounds of generation with one subject.

All pictures of a pair start from the same noise. The task `text_only` keeps the masks and sets the strength of the
visual attention to 0, so that its regions are found in the same way.
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
from model.pipeline_output import RealCustomOutput
from stages.config import Config
from stages.data.schemas import MULTI_SUBJECT
from stages.evaluate.models import Models
from stages.evaluate.painter import MASK_SIDE
from stages.evaluate.pairs import PairCase

#: The input: one row for each pair; a list of two has an entry for each subject.
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
            "round_prompts": [turn.prompt for turn in case.rounds],
            "round_phrases": [turn.phrase for turn in case.rounds],
            "seed": case.seed,
        }
        for case in cases
    ]
    return pa.Table.from_pylist(rows, PAIR_CASES)


class MultiSubjectPainter:
    """Takes tables of `PAIR_CASES`, and returns tables of `MULTI_SUBJECT`: one row for each subject of each picture."""

    def __init__(self, config: Config, models: Models) -> None:
        self.pipeline = models.pipeline
        self.settings = config.inference
        self.scorer = models.scorer

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Paint and score each pair in every task."""
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
        """Both subjects in one picture; each has half of the scope of a single subject."""
        scope = self.settings.mask_scope / 2
        subjects = [
            [
                Subject(picture=picture, word=word, scope=scope, scale=scale)
                for picture, word in zip(references, case["words"], strict=True)
            ]
            for case, references in zip(cases, pictures, strict=True)
        ]
        return self._paint(task, cases, [case["prompt"] for case in cases], subjects)[0]

    def _paint_rounds(self, cases: Sequence[Case], references: Sequence[Image.Image]) -> list[dict[str, Any]]:
        """The reference of a round is the picture of the round before."""
        rows: list[dict[str, Any]] = []
        for number in range(len(cases[0]["round_prompts"])):
            phrases = [case["round_phrases"][number] for case in cases]
            subjects = [
                [Subject(picture=reference, word=phrase)] for reference, phrase in zip(references, phrases, strict=True)
            ]
            prompts = [case["round_prompts"][number] for case in cases]
            painted, references = self._paint(f"round_{number + 1}", cases, prompts, subjects)
            rows += painted
        return rows

    def _paint(
        self, task: str, cases: Sequence[Case], prompts: Sequence[str], subjects: Sequence[Sequence[Subject]]
    ) -> tuple[list[dict[str, Any]], list[Image.Image]]:
        """Paint a picture for each case; one row for each of its subjects, and the pictures."""
        seeds = [case["seed"] for case in cases]
        output = self.pipeline(prompts, subjects, seeds=seeds, settings=self.settings)
        rows = [
            {"task": task, "prompt": prompt, **row}
            for index in range(len(subjects[0]))
            for prompt, row in zip(prompts, self._score(cases, subjects, output, index), strict=True)
        ]
        return rows, output.images

    def _score(
        self, cases: Sequence[Case], subjects: Sequence[Sequence[Subject]], output: RealCustomOutput, index: int
    ) -> list[dict[str, Any]]:
        """One row for the subject `index` of each picture."""
        similarities, other_similarities = (
            self._similarities(cases, output, index, other) for other in (index, 1 - index)
        )
        return [
            {
                "pair": " + ".join(case["subjects"]),
                "subject": case["subjects"][index],
                "phrase": subjects[number][index].word,
                "seed": case["seed"],
                "similarity": similarities[number],
                "other_similarity": other_similarities[number],
                "reference": to_png(subjects[number][index].picture),
                "picture": to_png(output.images[number]),
                "mask": to_png(mask_picture(output.masks[number][-1][index : index + 1], MASK_SIDE)),
            }
            for number, case in enumerate(cases)
        ]

    def _similarities(self, cases: Sequence[Case], output: RealCustomOutput, index: int, other: int) -> list[float]:
        """The similarity of the region of subject `index` to subject `other`, for each picture."""
        regions = torch.stack([masks[-1][index] > 0 for masks in output.masks])
        names, views = [case["subjects"][other] for case in cases], [case["views"][other] for case in cases]
        return self.scorer.region_similarity(to_tensor(output.images), regions, names, views)
