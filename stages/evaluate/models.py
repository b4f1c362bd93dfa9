"""The models of a worker of the evaluation: the pipeline with the adapter, learned concepts, and the scorer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from model.backbone import load_backbone
from model.concepts.loading import load_concept, unload_concepts
from model.pipeline import RealCustomPipeline
from stages.config import Config
from stages.evaluate.scorer import Scorer
from stages.inference import loading_options


@dataclass(frozen=True, kw_only=True)
class ModelPaths:
    """The weights that a worker loads."""

    backbone: str  # a folder or a hub id
    adapter: Path


class Models:
    """Loads every model once; all parts of a worker share them."""

    def __init__(self, config: Config, paths: ModelPaths) -> None:
        device = "cuda" if config.evaluate.use_gpu else "cpu"
        self.paths = paths
        self.pipeline = RealCustomPipeline.from_pretrained(
            paths.backbone,
            paths.adapter,
            dtype=getattr(torch, config.backbone.dtype),
            device=device,
            **loading_options(config.backbone),
        )
        self._concept: str | None = None
        self.scorer = Scorer(config.evaluate, paths.backbone, device)

    @cached_property
    def _plain_pipeline(self) -> RealCustomPipeline:
        base = self.pipeline.backbone
        return RealCustomPipeline(load_backbone(self.paths.backbone, base.dtype, base.device))

    def concept_pipeline(self, folder: str) -> RealCustomPipeline:
        """The base model with a learned concept instead of the last one, without an adapter."""
        if folder != self._concept:
            unload_concepts(self._plain_pipeline)
            load_concept(self._plain_pipeline, folder)
            self._concept = folder
        return self._plain_pipeline
