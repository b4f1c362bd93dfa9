"""The scores of a concept: pictures with it and with its class word alone, from the same prompts and noise.

They are painted and scored in a Ray task, one for each subject.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.backbone import load_backbone
from model.concepts.concept import Concept
from model.concepts.folder import read_concept
from model.concepts.loading import load_concept, unload_concepts
from model.pictures.decoding import load_picture
from model.pictures.tensors import to_tensor
from model.pipeline import RealCustomPipeline
from model.scoring.metrics import subject_similarity
from stages.config import Config
from stages.customize.painting_task import Device
from stages.customize.verdict import ArmScores, Verdict, judge_concept
from stages.inference import backbone_setting, on_this_machine
from stages.scoring import ScoringModels, templates_for

#: Pixel values by which pictures may differ that should be the same: a batch's size changes how sums are rounded.
_ROUNDING = 2
#: Pictures of each arm that are shown.
_SAMPLES = 4


@dataclass(frozen=True, kw_only=True)
class ScoringJob:
    """A subject whose concept is scored.

    Attributes:
        backbone: A folder's path or URI, or a hub id.
        pictures: Of the subject, encoded.
        checkpoints: The path or URI of the concept's folder at each step; the last is the end.
    """

    config: Config
    backbone: str
    device: Device
    word: str
    placeholder: str
    pictures: tuple[bytes, ...]
    checkpoints: Mapping[int, str]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The scores of a subject's concept.

    Attributes:
        prompts: The prompt of each picture, with the class word alone.
        word: Of the class word alone, without the concept.
        checkpoints: With the concept, at each step.
        samples: The first pictures at each step; at 0 those of the class word alone.
    """

    prompts: tuple[str, ...]
    word: ArmScores
    checkpoints: dict[int, ArmScores]
    verdict: Verdict
    samples: dict[int, list[Image.Image]]


def score_concept(job: ScoringJob) -> Iterator[str | Scored]:
    """Paint and score the class word and every checkpoint; yields what it does, and at the end the scores."""
    yield "loading the backbone"
    painter = _Painter(job)
    word, plain = yield from painter.score(job.word, job.word)
    scores: dict[int, ArmScores] = {}
    samples = {0: plain[:_SAMPLES]}
    for step, folder in sorted(job.checkpoints.items()):
        name = f"{job.placeholder} {job.word}"
        with painter.loaded(folder):
            scores[step], pictures = yield from painter.score(name, f"{name} of step {step}")
        samples[step] = pictures[:_SAMPLES]
    last = max(scores)
    drifted, unchanged = yield from painter.score_drift(job.checkpoints[last], plain)
    verdict = judge_concept(painter.prompts, scores[last], word, drifted, unchanged=unchanged)
    yield Scored(prompts=painter.prompts, word=word, checkpoints=scores, verdict=verdict, samples=samples)


class _Painter:
    """Paints the prompts of a job and scores the pictures. Generators yield what they do, before each batch."""

    def __init__(self, job: ScoringJob) -> None:
        self.job = job
        settings = job.config.customize.scoring
        templates = _spread(templates_for(job.word, job.config.evaluate), settings.prompts)
        self.templates = [template for template in templates for _ in range(settings.seeds)]
        self.seeds = [job.config.run.seed + number for number in range(len(self.templates))]
        self.prompts = tuple(template.replace("{word}", job.word) for template in self.templates)
        self.backbone = on_this_machine(job.backbone, backbone_setting(job.config.backbone))
        self.pipeline = RealCustomPipeline(load_backbone(self.backbone, job.device.dtype, job.device.name))

    @cached_property
    def models(self) -> ScoringModels:
        return ScoringModels(self.job.config.evaluate, self.backbone, self.job.device.name)

    @cached_property
    def views(self) -> Tensor:
        """Unit embeddings (V, D) of the subject's pictures."""
        pictures = [to_tensor([load_picture(picture)]) for picture in self.job.pictures]
        return torch.cat([self.models.subjects.embed_subjects(picture) for picture in pictures])

    @contextmanager
    def loaded(self, folder: str) -> Iterator[Concept]:
        """The block sees the concept."""
        concept = read_concept(Path(on_this_machine(folder, "run.folder")))
        load_concept(self.pipeline, concept)
        try:
            yield concept
        finally:
            unload_concepts(self.pipeline)

    def score(self, name: str, note: str) -> Generator[str, None, tuple[ArmScores, list[Image.Image]]]:
        """The scores of pictures of `name`, and the pictures."""
        pictures = yield from self.paint(name, len(self.templates), note)
        tensors = to_tensor(pictures)
        similarity = subject_similarity(self.models.subjects.embed_subjects(tensors), [self.views] * len(pictures))
        fidelity = self.models.fidelity(tensors, self.prompts)
        return ArmScores(similarity=tuple(similarity.tolist()), fidelity=tuple(fidelity.tolist())), pictures

    def score_drift(
        self, folder: str, plain: Sequence[Image.Image]
    ) -> Generator[str, None, tuple[ArmScores | None, bool]]:
        """The scores of the class word's pictures with the concept loaded.

        Of a concept that changes no weights: None, and whether a picture is the same as without the concept.
        """
        word, note = self.job.word, f"{self.job.word} with the concept loaded"
        with self.loaded(folder) as concept:
            if concept.cross_attention or concept.lora or concept.weights:
                drifted, _ = yield from self.score(word, note)
                return drifted, True
            (picture,) = yield from self.paint(word, 1, note)
        difference = np.abs(np.asarray(picture, dtype=int) - np.asarray(plain[0], dtype=int))
        return None, bool(difference.max() <= _ROUNDING)

    def paint(self, name: str, count: int, note: str) -> Generator[str, None, list[Image.Image]]:
        """Pictures of the first `count` prompts."""
        size = self.job.config.evaluate.batch_size
        pictures: list[Image.Image] = []
        for start in range(0, count, size):
            yield f"painting {note}, {start} of {count} pictures"
            part = slice(start, min(start + size, count))
            prompts = [template.replace("{word}", name) for template in self.templates[part]]
            output = self.pipeline(
                prompts, seeds=self.seeds[part], settings=self.job.config.customize.scoring.inference
            )
            pictures += output.images
        return pictures


def _spread(templates: Sequence[str], count: int) -> list[str]:
    """At most `count` of the templates, spread evenly: neighbours in a list are of one kind."""
    chosen = np.linspace(0, len(templates) - 1, min(count, len(templates))).round().astype(int)
    return [templates[index] for index in chosen]
