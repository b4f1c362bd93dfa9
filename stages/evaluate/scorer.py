"""The metrics of painted pictures: subject similarity, pattern, colours, prompt fidelity, CLIP-T, background change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from model.microworld.appearance import Appearance
from model.pictures.crops import square_crop
from model.pictures.decoding import load_picture
from model.pictures.tensors import to_tensor
from model.scoring.metrics import background_change, subject_similarity
from stages.evaluate.appearance import ANSWERS, agreement
from stages.evaluate.config import EvaluateConfig
from stages.scoring import ScoringModels


class Scorer(ScoringModels):
    """Computes the configured metrics."""

    def __init__(self, config: EvaluateConfig, backbone: str, device: str) -> None:
        super().__init__(config, backbone, device)
        self._views: dict[str, Tensor] = {}
        self._appearances: dict[str, list[Appearance]] = {}

    def score(self, pictures: Tensor, cases: Sequence[Mapping[str, Any]]) -> dict[str, Sequence[float | str | None]]:
        """Similarity, copying, prompt fidelity (`controllability`), CLIP-T, and agreement with the reference's pattern
        and colours, of pictures (B, 3, H, W) in [0, 1].

        What these can be compared with does not depend on the pictures: `real_views`, `another_subject`, `views_...`.
        """
        views = [self._embed_views(case["subject"], case["views"]) for case in cases]
        clip_t = self.clip.text_alignment(pictures, [case["prompt"] for case in cases])
        controllability = clip_t
        if self.judge is not None:
            controllability = self.judge.background_probability(pictures, [case["background"] for case in cases])
        embedded = self.subjects.embed_subjects(pictures)
        references = [self._embed_views(f"{case['subject']}, reference", [case["reference"]]) for case in cases]
        similarity = subject_similarity(embedded, views)
        return {
            "similarity": similarity.tolist(),
            "copying": (subject_similarity(embedded, references) - similarity).tolist(),
            "controllability": controllability.tolist(),
            "clip_t": clip_t.tolist(),
            "real_views": [_similarity_of_views(own) for own in views],
            "another_subject": [self._similarity_of_another(case) for case in cases],
            **self._agreement(pictures, cases),
        }

    def _agreement(
        self, pictures: Tensor, cases: Sequence[Mapping[str, Any]]
    ) -> dict[str, Sequence[float | str | None]]:
        """The judge's pattern of each reference, and whether picture and other views have its pattern and colours."""
        columns = ("reference_pattern", *ANSWERS, *(f"views_{answer}" for answer in ANSWERS))
        if self.judge is None:
            return {column: [None] * len(cases) for column in columns}
        rows = []
        for case, picture in zip(cases, self.judge.appearances(pictures), strict=True):
            reference, *views = self._appearances_of(case)
            own, real = agreement([picture], reference), agreement(views, reference)
            rows.append((reference.pattern, *own.values(), *real.values()))
        return dict(zip(columns, zip(*rows, strict=True), strict=True))

    def _appearances_of(self, case: Mapping[str, Any]) -> list[Appearance]:
        """The reference's appearance, and those of the subject's other views."""
        subject = case["subject"]
        if subject not in self._appearances:
            assert self.judge is not None
            squares = [_as_square(picture) for picture in (case["reference"], *case["views"])]
            self._appearances[subject] = [
                own for square in squares for own in self.judge.appearances(to_tensor([square]))
            ]
        return self._appearances[subject]

    def _similarity_of_another(self, case: Mapping[str, Any]) -> float | None:
        """The similarity of another subject with the same word, None if there is none."""
        if case["another_subject"] is None:
            return None
        other = self._embed_views(f"other than {case['subject']}", [case["another_subject"]])
        return float(subject_similarity(other, [self._embed_views(case["subject"], case["views"])]))

    def background_change(self, pictures: Tensor, plain: Tensor) -> list[float | None]:
        """The difference to the text-only pictures outside the subject, which the judge finds; None without a judge."""
        if self.judge is None:
            return [None] * len(pictures)
        subject = self.judge.subject_region(pictures) | self.judge.subject_region(plain)
        return list(background_change(pictures, plain, subject.cpu()).tolist())

    def region_similarity(
        self, pictures: Tensor, regions: Tensor, subjects: Sequence[str], views: Sequence[Sequence[bytes]]
    ) -> list[float]:
        """Subject similarity of a region of each picture. Needs the judge.

        Args:
            pictures: (B, 3, H, W) in [0, 1].
            regions: (B, G, G'), True inside.
            subjects: The name of the subject that each region is compared with.
            views: Real pictures of each of these subjects.
        """
        assert self.judge is not None
        embedded = [self._embed_views(*subject) for subject in zip(subjects, views, strict=True)]
        return list(subject_similarity(self.judge.embed_regions(pictures, regions), embedded).tolist())

    def _embed_views(self, subject: str, pictures: Sequence[bytes]) -> Tensor:
        if subject not in self._views:
            views = [_as_square(picture) for picture in pictures]
            self._views[subject] = torch.cat([self.subjects.embed_subjects(to_tensor([view])) for view in views])
        return self._views[subject]


def _similarity_of_views(views: Tensor) -> float | None:
    """The mean cosine of two different views (V, D); None if there is only one."""
    count = len(views)
    return float((views @ views.T).sum() - count) / (count * (count - 1)) if count > 1 else None


def _as_square(picture: bytes) -> Image.Image:
    image = load_picture(picture)
    return square_crop(image, 0.5, 0.5, min(image.size))
