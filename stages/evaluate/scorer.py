"""The metrics of painted pictures: likeness, obedience, what has changed around the subject, and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from model.pictures import load_picture, square_crop, to_tensor
from model.scoring.metrics import (
    ClipScorer,
    DinoScorer,
    JudgeScorer,
    SubjectEmbedder,
    ground_change,
    subject_similarity,
)
from stages.evaluate.config import EvaluateConfig


def load_judge(backbone: str) -> JudgeScorer:
    """The judge that lies in the micro backbone."""
    return JudgeScorer.from_pretrained(Path(backbone) / "judge")


class Scorer:
    """The metrics that the configuration asks for."""

    def __init__(self, config: EvaluateConfig, backbone: str, device: str) -> None:
        inside = Path(backbone) / config.clip
        clip: str | Path = inside if inside.is_dir() else config.clip
        tokenizer = Path(backbone) / "tokenizer" if inside.is_dir() else None
        self.clip = ClipScorer.from_pretrained(clip, tokenizer).to(device)
        self.judge = load_judge(backbone) if config.similarity == "judge" else None
        self.subjects: SubjectEmbedder = self.judge or self.clip
        if config.similarity == "dino":
            self.subjects = DinoScorer.from_pretrained(config.dino).to(device)
        self._views: dict[str, Tensor] = {}

    def score(self, pictures: Tensor, cases: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
        """Likeness, obedience and CLIP-T of pictures (B, 3, H, W) in [0, 1]."""
        views = [self._embed_views(case["subject"], case["views"]) for case in cases]
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

    def region_similarity(
        self, pictures: Tensor, regions: Tensor, subjects: Sequence[str], views: Sequence[Sequence[bytes]]
    ) -> list[float]:
        """Likeness of what a region of each picture shows to a subject of its own; by the judge, which is needed.

        Args:
            pictures: (B, 3, H, W) in [0, 1].
            regions: (B, G, G'), True inside.
            subjects: for each picture the subject's name.
            views: and its real pictures.
        """
        assert self.judge is not None
        embedded = [self._embed_views(*subject) for subject in zip(subjects, views, strict=True)]
        return list(subject_similarity(self.judge.embed_regions(pictures, regions), embedded).tolist())

    def _embed_views(self, subject: str, pictures: Sequence[bytes]) -> Tensor:
        if subject not in self._views:
            views = [_as_square(picture) for picture in pictures]
            self._views[subject] = torch.cat([self.subjects.embed_subjects(to_tensor([view])) for view in views])
        return self._views[subject]


def _as_square(picture: bytes) -> Image.Image:
    image = load_picture(picture)
    return square_crop(image, 0.5, 0.5, min(image.size))
