"""Pictures of the microworld's concepts, and their scores by subject and by prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch
from PIL import Image
from torch import Tensor

from model.backbone import load_backbone
from model.dci.settings import DCISettings
from model.guidance.settings import InferenceSettings
from model.micro_sd.weights import WEIGHTS_FOLDER
from model.pictures.decoding import load_picture
from model.pictures.tensors import to_tensor
from model.pipeline import RealCustomPipeline
from model.scoring.metrics import subject_similarity
from stages.config import Config
from stages.scoring import ScoringModels, templates_for
from tests.benchmarks.support.concept_training import AlbumSubject


class Row(TypedDict):
    """The scores of a picture.

    similarity: To views of the subject in other places, by the judge.
    fidelity: The judge's probability of the background that the prompt names.
    clip_t: With the prompt without V*.
    """

    prompt: str
    similarity: float
    fidelity: float
    clip_t: float


@dataclass(frozen=True)
class Painted:
    """Pictures of a subject, one for each prompt, with their scores."""

    pictures: list[Image.Image]
    rows: list[Row]


class ConceptPainter:
    """Paints and scores; loads each model once. A picture's noise depends on its prompt's number alone."""

    def __init__(self, config: Config, prompts: int) -> None:
        self.config, self._prompts = config, prompts
        self.pipeline = RealCustomPipeline(load_backbone(WEIGHTS_FOLDER))
        self._models = ScoringModels(config.evaluate, str(WEIGHTS_FOLDER), "cpu")
        self._settings = InferenceSettings(
            steps=config.inference.steps, guidance_scale=config.customize.scoring.guidance_scale, mask_steps=None
        )

    def prompts(self, name: str) -> list[str]:
        """The prompts of a concept or a class word: the microworld's backgrounds."""
        templates = templates_for(name, self.config.evaluate)[: self._prompts]
        return [template.replace("{word}", name) for template in templates]

    def paint(self, subject: AlbumSubject, name: str, strength: float | None = None) -> Painted:
        """Pictures of `name`, with DCI of this lambda if there is one; then in fewer steps, for the same cost."""
        settings, dci = self._settings, None
        if strength is not None:
            dci = DCISettings(concept=name, injection_strength=strength)
            settings = settings.with_steps(dci.steps_within(settings.steps))
        pictures = self.pipeline(self.prompts(name), settings=settings, dci=dci, seeds=self.config.run.seed).images
        return Painted(pictures, self._rows(subject, to_tensor(pictures)))

    def _rows(self, subject: AlbumSubject, pictures: Tensor) -> list[Row]:
        prompts = self.prompts(subject.word)
        subjects, views = self._models.subjects, to_tensor([load_picture(view) for view in subject.views])
        similarity = subject_similarity(
            subjects.embed_subjects(pictures), [subjects.embed_subjects(views)] * len(pictures)
        )
        fidelity = self._models.fidelity(pictures, prompts)
        clip_t = self._models.clip.text_alignment(pictures, prompts)
        scores = torch.stack([similarity, fidelity, clip_t], 1).tolist()
        return [
            Row(prompt=prompt, similarity=own[0], fidelity=own[1], clip_t=own[2])
            for prompt, own in zip(prompts, scores, strict=True)
        ]
